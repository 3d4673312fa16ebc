"""A function in its own thread, used as a coroutine: it stops at each question until the owner answers.

So code that runs from start to end, such as a diffusers pipeline, takes turns with others, unmodified. Long work
between two questions need not block the owner (`release_owner`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, TypeVar

import torch

from engine.device.threads import limit_to_one_core

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
