"""Batches many network calls into few forwards and splits the outputs.

The arguments of calls decide whether it may join them (`network_call.py`). Then it *tries*: the first time that calls
of a signature meet, and the first time at different timesteps, each also runs alone. If the outputs differ by more than
rounding, or the joint forward fails, such calls run one by one from then on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from cachetools import LRUCache

from engine.device.core_turns import limit_to_one_core
from engine.device.memory import is_out_of_memory
from engine.pipelines.network_call import NetworkCall, has_different_timesteps, join_calls, split_output

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # relative; swapped rows differ by far more
HALF_TOLERANCE = 5e-2  # the same for bfloat16 and float16
MAX_TRIALS = 1000


class ForwardBatcher:
    """`forwards` and `rows` count everything that ran, trials and padding included."""

    def __init__(self) -> None:
        self.forwards = 0
        self.rows = 0
        self._is_joinable: LRUCache[Hashable, bool] = LRUCache(MAX_TRIALS)

    def run(self, calls: Sequence[NetworkCall], max_rows: int, bucket: int | None = None) -> list[Any]:
        """Return the output of each call, in order, from forwards of at most `max_rows` rows. A larger call runs alone.

        With a `bucket`, every forward has exactly that many rows if its calls fit. Then an output's bits do not depend
        on the other calls. Raises what the network raises for a call by itself, or out of memory.
        """
        outputs: list[Any] = [None] * len(calls)
        for group in _group_calls(calls):
            for chunk in _split_group(calls, group, bucket or max_rows):
                batch = [calls[n] for n in chunk]
                for n, output in zip(chunk, self._run_batch(batch, bucket), strict=True):
                    outputs[n] = output
        return outputs

    def _run_batch(self, calls: list[NetworkCall], bucket: int | None) -> list[Any]:
        rows = sum(call.rows for call in calls)
        padding = max(0, bucket - rows) if bucket else 0
        if len(calls) == 1 and not padding:
            return [self._run_single(calls[0])]
        trial_key = self._make_trial_key(calls, padding)
        if trial_key not in self._is_joinable:
            return self._run_trial(calls, padding, trial_key)
        if self._is_joinable[trial_key]:
            return self._run_joined(calls, padding)
        return [self._run_single(call) for call in calls]

    def _make_trial_key(self, calls: list[NetworkCall], padding: int) -> Hashable:
        """Return the key of a trial. It compares timesteps only until such a trial has run."""
        differing_key = (calls[0].signature, padding > 0, True)
        if differing_key in self._is_joinable or (len(calls) > 1 and has_different_timesteps(calls)):
            return differing_key
        return (calls[0].signature, padding > 0, False)

    def _run_single(self, call: NetworkCall) -> Any:
        self.forwards, self.rows = self.forwards + 1, self.rows + call.rows
        return call.forward(*call.arguments)

    def _run_joined(self, calls: list[NetworkCall], padding: int) -> list[Any]:
        arguments = join_calls(calls, padding)
        counts = [call.rows for call in calls]
        self.forwards, self.rows = self.forwards + 1, self.rows + sum(counts) + padding
        return split_output(calls[0].forward(*arguments), counts, sum(counts) + padding)

    def _run_trial(self, calls: list[NetworkCall], padding: int, trial_key: Hashable) -> list[Any]:
        """Run the calls alone and joined. Non-finite outputs prove nothing, so the next such calls try again."""
        single_outputs = [self._run_single(call) for call in calls]
        joined_outputs = self._try_joined(calls, padding)
        single_tensors = [list(_iterate_tensors(each)) for each in single_outputs]
        if not all(part.isfinite().all() for each in single_tensors for part in each):
            return single_outputs
        is_joinable = joined_outputs is not None and all(
            _all_close(part, list(_iterate_tensors(output)))
            for part, output in zip(single_tensors, joined_outputs, strict=True)
        )
        self._is_joinable[trial_key] = is_joinable
        if not is_joinable:
            log.warning(
                "calls to %s cannot be joined by rows: they run one by one from now on", _get_network_name(calls[0])
            )
        return joined_outputs if is_joinable and joined_outputs is not None else single_outputs

    def _try_joined(self, calls: list[NetworkCall], padding: int) -> list[Any] | None:
        try:
            return self._run_joined(calls, padding)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            log.info("%s failed on joined calls: %r", _get_network_name(calls[0]), error)
            return None


def _group_calls(calls: Sequence[NetworkCall]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for index, call in enumerate(calls):
        groups.setdefault(call.signature, []).append(index)
    return list(groups.values())


def _split_group(calls: Sequence[NetworkCall], indices: list[int], max_rows: int) -> Iterator[list[int]]:
    chunk: list[int] = []
    for index in indices:
        if chunk and sum(calls[n].rows for n in chunk) + calls[index].rows > max_rows:
            yield chunk
            chunk = []
        chunk.append(index)
    yield chunk


def _iterate_tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _iterate_tensors(list(cast(dict[str, Any], output).values()))
    elif isinstance(output, list | tuple):
        for each in cast(Sequence[Any], output):
            yield from _iterate_tensors(each)


def _all_close(single: list[torch.Tensor], batched: list[torch.Tensor]) -> bool:
    if [part.shape for part in single] != [part.shape for part in batched]:
        return False
    return all(_is_close(expected, actual) for expected, actual in zip(single, batched, strict=True))


def _is_close(expected: torch.Tensor, actual: torch.Tensor) -> bool:
    if not expected.is_floating_point():
        return bool(torch.equal(expected, actual))
    norms = [float(cast(Any, part).norm()) for part in (expected.double(), expected.double() - actual.double())]
    return norms[1] <= TOLERANCE.get(expected.dtype, HALF_TOLERANCE) * norms[0]


def _get_network_name(call: NetworkCall) -> str:
    return type(call.forward.net).__name__


Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")


class ThreadClosed(BaseException):
    """Raised inside a closed thread. It is no `Exception`, so that no pipeline catches it."""


class Message(NamedTuple, Generic[Q]):
    content: Q


class ThreadEnd(NamedTuple, Generic[T]):
    """The function's result, or its error."""

    result: T | None
    error: BaseException | None = None


class CoroutineThread(Generic[Q, A, T]):
    """`work` runs in the thread and gets this object, to call `ask`. The thread starts at the first `poll`.

    One other thread owns it: only the owner may call `poll`, `answer`, `close` and `join`.
    """

    def __init__(self, work: Callable[[CoroutineThread[Q, A, T]], T], name: str = "coroutine-thread") -> None:
        self._work = work
        self._name = name
        self._thread: threading.Thread | None = None
        self._outbox: SimpleQueue[Message[Q] | ThreadEnd[T] | None] = SimpleQueue()
        self._answers: SimpleQueue[Message[A] | None] = SimpleQueue()
        self._close_event = threading.Event()
        self._pending: Message[Q] | ThreadEnd[T] | None = None

    @property
    def is_started(self) -> bool:
        return self._thread is not None

    @property
    def thread(self) -> threading.Thread | None:
        """The thread. After its end it holds no reference to this object or its work."""
        return self._thread

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def poll(self, seconds: float | None = None) -> Message[Q] | ThreadEnd[T] | None:
        """Return its question or its end; wait for that, at most `seconds`.

        Return None if it still runs, or has released its owner for a while.
        """
        if self._thread is None:
            self._start()
        if self._pending is None:
            try:
                self._pending = self._outbox.get(timeout=seconds) if seconds != 0 else self._outbox.get_nowait()
            except Empty:
                return None
        return self._pending

    def answer(self, answer: A) -> None:
        """Answer the question from `poll`, so that the thread continues."""
        assert isinstance(self._pending, Message), "no question is open"
        self._pending = None
        self._answers.put(Message(answer))

    def close(self) -> None:
        """Make it end at its current or next question, or at its next `raise_if_closed`. Returns at once."""
        if self._thread is None:  # never started, and never will
            self._pending = ThreadEnd(None, ThreadClosed())
        self._close_event.set()
        self._answers.put(None)

    def join(self, seconds: float | None = None) -> bool:
        """Wait until the thread has ended; return False if it still runs after `seconds`."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.is_alive

    def ask(self, question: Q) -> A:
        """In the thread: wait for the owner's answer. Raises `ThreadClosed` if there will be none."""
        self.raise_if_closed()
        self._outbox.put(Message(question))
        message = self._answers.get()
        if message is None:
            raise ThreadClosed
        return message.content

    def release_owner(self) -> None:
        """In the thread: release an owner that waits in `poll`; the owner polls again later."""
        self._outbox.put(None)

    def raise_if_closed(self) -> None:
        """In the thread: raise `ThreadClosed` if the owner has closed it."""
        if self._close_event.is_set():
            raise ThreadClosed

    def _start(self) -> None:
        if isinstance(self._pending, ThreadEnd):
            return
        cores = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, args=(cores,), name=self._name, daemon=True)
        self._thread.start()

    def _run(self, cores: int) -> None:
        limit_to_one_core(cores)
        try:
            end = ThreadEnd(self._work(self))
        except BaseException as error:  # also `ThreadClosed`, and any error of a pipeline: the owner decides
            end = ThreadEnd[T](None, error)
        self._outbox.put(end)
