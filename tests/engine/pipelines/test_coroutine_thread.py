"""A coroutine thread takes turns with its owner, ends when it is closed, and leaves no thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from engine.pipelines.coroutine_thread import CoroutineThread, Message, ThreadClosed, ThreadEnd


@pytest.fixture(autouse=True)
def no_threads_remain() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def ask_three_times(strand: CoroutineThread[int, int, int]) -> int:
    return sum(strand.ask(number) for number in range(3))


def test_a_strand_asks_gets_answers_and_returns_a_result() -> None:
    strand = CoroutineThread(ask_three_times)
    questions: list[int] = []
    while isinstance(rest := strand.poll(), Message):
        questions.append(rest.content)
        strand.answer(10 * rest.content)
    assert questions == [0, 1, 2]
    assert rest == ThreadEnd(30)
    assert strand.poll() == ThreadEnd(30)  # the same at every later look
    assert strand.join(5)


def test_a_strand_starts_no_thread_before_the_first_rest() -> None:
    strand = CoroutineThread(ask_three_times)
    assert not strand.is_started
    strand.close()
    assert isinstance(strand.poll(), ThreadEnd)
    assert not strand.is_started


def test_many_strands_take_turns_in_any_order() -> None:
    strands = [CoroutineThread(ask_three_times) for _ in range(8)]
    ends: dict[int, int | None] = {}
    while len(ends) < len(strands):
        for number, strand in reversed(list(enumerate(strands))):
            rest = strand.poll()
            if isinstance(rest, Message):
                strand.answer(rest.content + number)
            elif rest is not None:
                ends[number] = rest.result
    assert ends == {number: 3 + 3 * number for number in range(8)}
    assert all(strand.join(5) for strand in strands)


def test_an_error_in_the_strand_reaches_its_owner() -> None:
    def divide(strand: CoroutineThread[int, int, int]) -> int:
        return 1 // strand.ask(1)

    strand = CoroutineThread(divide)
    assert strand.poll() == Message(1)
    strand.answer(0)
    rest = strand.poll()
    assert isinstance(rest, ThreadEnd)
    assert isinstance(rest.error, ZeroDivisionError)
    assert strand.join(5)


def test_closing_a_waiting_strand_unwinds_it_even_if_it_catches_exceptions() -> None:
    unwound: list[str] = []

    def stubborn(strand: CoroutineThread[int, int, int]) -> int:
        for _ in range(1000):
            try:
                strand.ask(1)
            except Exception:
                unwound.append("swallowed")
            finally:
                unwound.append("unwound")
        return 0

    strand = CoroutineThread(stubborn)
    assert strand.poll() == Message(1)
    strand.close()
    assert strand.join(5)
    assert unwound == ["unwound"]


def test_a_strand_closed_while_running_ends_at_its_next_check() -> None:
    go, started = threading.Event(), threading.Event()

    def busy(strand: CoroutineThread[int, int, str]) -> str:
        started.set()
        go.wait(5)
        strand.raise_if_closed()
        return "went on"

    strand = CoroutineThread(busy)
    assert strand.poll(0) is None  # it runs, and its owner does not have to wait
    assert started.wait(5)
    assert strand.poll(0.01) is None
    strand.close()
    assert not strand.join(0.01)
    go.set()
    assert strand.join(5)
    rest = strand.poll()
    assert isinstance(rest, ThreadEnd)
    assert isinstance(rest.error, ThreadClosed)


def test_a_strand_closed_while_running_ends_at_its_next_question() -> None:
    go = threading.Event()

    def busy(strand: CoroutineThread[int, int, int]) -> int:
        go.wait(5)
        return strand.ask(1)

    strand = CoroutineThread(busy)
    assert strand.poll(0) is None
    strand.close()
    go.set()
    assert strand.join(5)


def test_a_strand_computes_on_one_core_and_other_threads_keep_theirs() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        strand = CoroutineThread[int, int, int](lambda strand: torch.get_num_threads())
        assert strand.poll() == ThreadEnd(1)
        assert torch.get_num_threads() == 2
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [2]
        assert strand.join(5)
    finally:
        torch.set_num_threads(before)
