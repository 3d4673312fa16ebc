"""Pauses after failures, and the cache of finals meanwhile: both are bounded."""

from __future__ import annotations

from bot.discord.cards import pictures
from bot.discord.delivery import edit_policy


def test_pauses_double_up_to_a_minute() -> None:
    assert [edit_policy.backoff_pause(2.0, times) for times in (0, 1, 2, 5, 6, 10_000)] == [
        2.0,
        2.0,
        4.0,
        32.0,
        60.0,
        60.0,
    ]


def test_finals_are_cached_within_a_limit_and_while_their_pictures_match() -> None:
    cache = pictures.PictureCache(10)
    one = pictures.PictureFile("one", b"123456")
    cache.put("a", [b"1", b"2"], 5, one)
    assert cache.get("a", [b"1", b"2"], 5) is one
    assert cache.get("a", [b"1", b"blurred"], 5) is None
    assert cache.get("a", [b"1", b"2"], 4) is None
    cache.put("b", [b"3"], 5, one)
    assert cache.get("a", [b"1", b"2"], 5) is None
    assert cache.get("b", [b"3"], 5) is one
    cache.forget("b")
    assert cache.total_bytes == 0


def test_given_up_deliveries_are_retried_ever_later_and_settled_ones_forgotten() -> None:
    given_up = edit_policy.JobBackoff()
    assert not given_up.is_waiting("a", 0.0)
    given_up.add("a", 0.0)
    given_up.add("b", 0.0)
    assert given_up.is_waiting("a", 599.0)
    assert not given_up.is_waiting("a", 600.0)
    given_up.add("a", 600.0)
    assert given_up.is_waiting("a", 1799.0)
    assert not given_up.is_waiting("a", 1800.0)
    for _ in range(20):
        given_up.add("a", 0.0)
    assert not given_up.is_waiting("a", edit_policy.MAX_JOB_PAUSE)
    given_up.retain_only(["a", "c"])
    assert len(given_up) == 1
    assert not given_up.is_waiting("b", 0.0)
