"""Pauses after failures, and what is kept through them: bounded, both."""

from __future__ import annotations

from bot.chat import delivery
from bot.chat.post import pauses


def test_pauses_double_up_to_a_minute() -> None:
    assert [pauses.longer(2.0, times) for times in (0, 1, 2, 5, 6, 10_000)] == [2.0, 2.0, 4.0, 32.0, 60.0, 60.0]


def test_finals_are_kept_within_bounds_and_while_their_pictures_are_the_same() -> None:
    kept, one = delivery.Kept(10), delivery.Picture("one", b"123456")
    kept.put("a", [b"1", b"2"], 5, one)
    assert kept.get("a", [b"1", b"2"], 5) is one
    assert kept.get("a", [b"1", b"blurred"], 5) is None
    assert kept.get("a", [b"1", b"2"], 4) is None
    kept.put("b", [b"3"], 5, one)
    assert kept.get("a", [b"1", b"2"], 5) is None
    assert kept.get("b", [b"3"], 5) is one
    kept.forget("b")
    assert kept.bytes == 0
