"""A coroutine thread takes turns with its owner, ends when it is closed, and leaves no thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from engine.strands.strand import Asked, Ceased, Ended, Strand


@pytest.fixture(autouse=True)
def no_threads_remain() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def ask_three_times(strand: Strand[int, int, int]) -> int:
    return sum(strand.ask(number) for number in range(3))


def test_a_strand_asks_gets_answers_and_returns_a_result() -> None:
    strand = Strand(ask_three_times)
    questions: list[int] = []
    while isinstance(rest := strand.rest(), Asked):
        questions.append(rest.question)
        strand.answer(10 * rest.question)
    assert questions == [0, 1, 2]
    assert rest == Ended(30)
    assert strand.rest() == Ended(30)  # the same at every later look
    assert strand.join(5)


def test_a_strand_starts_no_thread_before_the_first_rest() -> None:
    strand = Strand(ask_three_times)
    assert not strand.started
    strand.close()
    assert isinstance(strand.rest(), Ended)
    assert not strand.started


def test_many_strands_take_turns_in_any_order() -> None:
    strands = [Strand(ask_three_times) for _ in range(8)]
    ends: dict[int, int | None] = {}
    while len(ends) < len(strands):
        for number, strand in reversed(list(enumerate(strands))):
            rest = strand.rest()
            if isinstance(rest, Asked):
                strand.answer(rest.question + number)
            elif rest is not None:
                ends[number] = rest.result
    assert ends == {number: 3 + 3 * number for number in range(8)}
    assert all(strand.join(5) for strand in strands)


def test_an_error_in_the_strand_reaches_its_owner() -> None:
    def divide(strand: Strand[int, int, int]) -> int:
        return 1 // strand.ask(1)

    strand = Strand(divide)
    assert strand.rest() == Asked(1)
    strand.answer(0)
    rest = strand.rest()
    assert isinstance(rest, Ended)
    assert isinstance(rest.error, ZeroDivisionError)
    assert strand.join(5)


def test_closing_a_waiting_strand_unwinds_it_even_if_it_catches_exceptions() -> None:
    unwound: list[str] = []

    def stubborn(strand: Strand[int, int, int]) -> int:
        for _ in range(1000):
            try:
                strand.ask(1)
            except Exception:
                unwound.append("swallowed")
            finally:
                unwound.append("unwound")
        return 0

    strand = Strand(stubborn)
    assert strand.rest() == Asked(1)
    strand.close()
    assert strand.join(5)
    assert unwound == ["unwound"]


def test_a_strand_closed_while_running_ends_at_its_next_check() -> None:
    go, started = threading.Event(), threading.Event()

    def busy(strand: Strand[int, int, str]) -> str:
        started.set()
        go.wait(5)
        strand.check()
        return "went on"

    strand = Strand(busy)
    assert strand.rest(0) is None  # it runs, and its owner does not have to wait
    assert started.wait(5)
    assert strand.rest(0.01) is None
    strand.close()
    assert not strand.join(0.01)
    go.set()
    assert strand.join(5)
    rest = strand.rest()
    assert isinstance(rest, Ended)
    assert isinstance(rest.error, Ceased)


def test_a_strand_closed_while_running_ends_at_its_next_question() -> None:
    go = threading.Event()

    def busy(strand: Strand[int, int, int]) -> int:
        go.wait(5)
        return strand.ask(1)

    strand = Strand(busy)
    assert strand.rest(0) is None
    strand.close()
    go.set()
    assert strand.join(5)


def test_a_strand_computes_on_one_core_and_other_threads_keep_theirs() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        strand = Strand[int, int, int](lambda strand: torch.get_num_threads())
        assert strand.rest() == Ended(1)
        assert torch.get_num_threads() == 2
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [2]
        assert strand.join(5)
    finally:
        torch.set_num_threads(before)
