"""A coroutine thread takes turns with its owner, ends when it is closed, and leaves no thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from engine.pipelines.forward_batcher import CoroutineThread, Message, ThreadClosed, ThreadEnd


@pytest.fixture(autouse=True)
def no_threads_remain() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def ask_three_times(coroutine_thread: CoroutineThread[int, int, int]) -> int:
    return sum(coroutine_thread.ask(number) for number in range(3))


def test_a_coroutine_thread_asks_gets_answers_and_returns_a_result() -> None:
    coroutine_thread = CoroutineThread(ask_three_times)
    questions: list[int] = []
    while isinstance(message := coroutine_thread.poll(), Message):
        questions.append(message.content)
        coroutine_thread.answer(10 * message.content)
    assert questions == [0, 1, 2]
    assert message == ThreadEnd(30)
    assert coroutine_thread.poll() == ThreadEnd(30)  # every later poll returns the same
    assert coroutine_thread.join(5)


def test_a_coroutine_thread_starts_no_thread_before_the_first_poll() -> None:
    coroutine_thread = CoroutineThread(ask_three_times)
    assert not coroutine_thread.is_started
    coroutine_thread.close()
    assert isinstance(coroutine_thread.poll(), ThreadEnd)
    assert not coroutine_thread.is_started


def test_many_strands_take_turns_in_any_order() -> None:
    coroutine_threads = [CoroutineThread(ask_three_times) for _ in range(8)]
    results: dict[int, int | None] = {}
    while len(results) < len(coroutine_threads):
        for number, coroutine_thread in reversed(list(enumerate(coroutine_threads))):
            message = coroutine_thread.poll()
            if isinstance(message, Message):
                coroutine_thread.answer(message.content + number)
            elif message is not None:
                results[number] = message.result
    assert results == {number: 3 + 3 * number for number in range(8)}
    assert all(coroutine_thread.join(5) for coroutine_thread in coroutine_threads)


def test_an_error_in_a_coroutine_thread_reaches_its_owner() -> None:
    def divide_by_zero(coroutine_thread: CoroutineThread[int, int, int]) -> int:
        return 1 // coroutine_thread.ask(1)

    coroutine_thread = CoroutineThread(divide_by_zero)
    assert coroutine_thread.poll() == Message(1)
    coroutine_thread.answer(0)
    message = coroutine_thread.poll()
    assert isinstance(message, ThreadEnd)
    assert isinstance(message.error, ZeroDivisionError)
    assert coroutine_thread.join(5)


def test_closing_a_waiting_coroutine_thread_unwinds_it_even_if_it_catches_exceptions() -> None:
    cleaned_up: list[str] = []

    def ignore_cancellation(coroutine_thread: CoroutineThread[int, int, int]) -> int:
        for _ in range(1000):
            try:
                coroutine_thread.ask(1)
            except Exception:
                cleaned_up.append("swallowed")
            finally:
                cleaned_up.append("unwound")
        return 0

    coroutine_thread = CoroutineThread(ignore_cancellation)
    assert coroutine_thread.poll() == Message(1)
    coroutine_thread.close()
    assert coroutine_thread.join(5)
    assert cleaned_up == ["unwound"]


def test_a_coroutine_thread_closed_while_running_ends_at_its_next_check() -> None:
    release = threading.Event()
    start_event = threading.Event()

    def work_until_release(coroutine_thread: CoroutineThread[int, int, str]) -> str:
        start_event.set()
        release.wait(5)
        coroutine_thread.raise_if_closed()
        return "went on"

    coroutine_thread = CoroutineThread(work_until_release)
    assert coroutine_thread.poll(0) is None  # it runs, and its owner does not have to wait
    assert start_event.wait(5)
    assert coroutine_thread.poll(0.01) is None
    coroutine_thread.close()
    assert not coroutine_thread.join(0.01)
    release.set()
    assert coroutine_thread.join(5)
    message = coroutine_thread.poll()
    assert isinstance(message, ThreadEnd)
    assert isinstance(message.error, ThreadClosed)


def test_a_coroutine_thread_closed_while_running_ends_at_its_next_question() -> None:
    release = threading.Event()

    def work_until_release(coroutine_thread: CoroutineThread[int, int, int]) -> int:
        release.wait(5)
        return coroutine_thread.ask(1)

    coroutine_thread = CoroutineThread(work_until_release)
    assert coroutine_thread.poll(0) is None
    coroutine_thread.close()
    release.set()
    assert coroutine_thread.join(5)


def test_a_coroutine_thread_computes_on_one_core_and_other_threads_keep_theirs() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        coroutine_thread = CoroutineThread[int, int, int](lambda coroutine_thread: torch.get_num_threads())
        assert coroutine_thread.poll() == ThreadEnd(1)
        assert torch.get_num_threads() == 2
        later_counts: list[int] = []
        thread = threading.Thread(target=lambda: later_counts.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later_counts == [2]
        assert coroutine_thread.join(5)
    finally:
        torch.set_num_threads(before)
