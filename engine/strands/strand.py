"""Strand: a function in a thread of its own, used as a coroutine: it stops where it asks and goes on when answered.

So code that was written to run from its beginning to its end (a pipeline of diffusers) takes turns with others of its
kind, unmodified. What is long between two questions need not hold its owner up (`go_on_alone`). Knows threads; nothing
of pipelines, networks or jobs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, TypeVar

import torch

from engine.one_core import take_one_core

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")


class Ceased(BaseException):
    """Raised inside a strand that nobody waits for any more. No `Exception`, so that no pipeline takes it for one."""


class Asked(NamedTuple, Generic[Q]):
    question: Q


class Ended(NamedTuple, Generic[T]):
    """What the function returned, or why it did not."""

    result: T | None
    error: BaseException | None = None


class Strand(Generic[Q, A, T]):
    """`work` runs in the strand's thread and gets the strand, to `ask` by. The thread starts at the first `rest`.

    One thread owns the strand: it alone may call `rest`, `answer`, `close` and `join`.
    """

    def __init__(self, work: Callable[[Strand[Q, A, T]], T], name: str = "strand") -> None:
        self._work, self._name = work, name
        self._thread: threading.Thread | None = None
        self._rested: SimpleQueue[Asked[Q] | Ended[T] | None] = SimpleQueue()
        self._answers: SimpleQueue[Asked[A] | None] = SimpleQueue()
        self._ceasing = threading.Event()
        self._rest: Asked[Q] | Ended[T] | None = None

    @property
    def started(self) -> bool:
        return self._thread is not None

    @property
    def thread(self) -> threading.Thread | None:
        """Once it has ended, it knows nothing of the strand or its work any more."""
        return self._thread

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def rest(self, seconds: float | None = None) -> Asked[Q] | Ended[T] | None:
        """Where it stopped: the question it waits with, or its end. Waits for that, at most `seconds`.

        None where it has not stopped yet, or says that it goes on alone for a while.
        """
        if self._thread is None:
            self._start()
        if self._rest is None:
            try:
                self._rest = self._rested.get(timeout=seconds) if seconds != 0 else self._rested.get_nowait()
            except Empty:
                return None
        return self._rest

    def answer(self, answer: A) -> None:
        """Lets it go on from the question that `rest` told."""
        assert isinstance(self._rest, Asked), "nothing was asked"
        self._rest = None
        self._answers.put(Asked(answer))

    def close(self) -> None:
        """It ends at its present or next question, or where it next calls `check`. Returns at once."""
        if self._thread is None:  # never started: it never will
            self._rest = Ended(None, Ceased())
        self._ceasing.set()
        self._answers.put(None)

    def join(self, seconds: float | None = None) -> bool:
        """Waits until the thread has ended; False where it still runs after `seconds`."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.alive

    def ask(self, question: Q) -> A:
        """In the strand's thread: stop here until the owner answers. Raises `Ceased` where it never will."""
        self.check()
        self._rested.put(Asked(question))
        answered = self._answers.get()
        if answered is None:
            raise Ceased
        return answered.question

    def go_on_alone(self) -> None:
        """In the strand's thread: whoever waits now need not; where it stopped is to be asked for later."""
        self._rested.put(None)

    def check(self) -> None:
        """In the strand's thread: raises `Ceased` where the strand was closed."""
        if self._ceasing.is_set():
            raise Ceased

    def _start(self) -> None:
        if isinstance(self._rest, Ended):
            return
        cores = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, args=(cores,), name=self._name, daemon=True)
        self._thread.start()

    def _run(self, cores: int) -> None:
        take_one_core(cores)
        try:
            ended = Ended(self._work(self))
        except BaseException as error:  # also `Ceased`, and whatever a pipeline raises: its owner decides
            ended = Ended(None, error)
        self._rested.put(ended)
