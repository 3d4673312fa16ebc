"""Texts of events: written once for all pages, never mixed up, and only a limited number is kept."""

from __future__ import annotations

import json

from bot.feed import Developing, Queued, merge
from bot.web import shown
from bot.web.told import REMEMBERED, Texts


def test_an_event_is_written_once_for_all_pages_that_keep_up() -> None:
    texts = Texts()
    one, other = Developing("a", 1, 4, 2.0, {0: b"jpeg"}), Developing("b", 1, 4, 2.0, {0: b"jpeg"})
    first = texts.of(one)
    assert first == b"event: frame\r\ndata: " + json.dumps(shown.frame(one)).encode() + b"\r\n\r\n"
    assert texts.of(other) != first
    assert texts.of(one) is first
    merged = merge(one, Developing("a", 2, 4, 1.0, {1: b"newer"}))
    assert isinstance(merged, Developing)
    assert json.dumps(shown.frame(merged)).encode() in texts.of(merged)
    assert texts.of(one) == first  # a page that is behind still gets its own


def test_only_the_texts_of_the_last_jobs_are_kept() -> None:
    texts = Texts()
    for number in range(REMEMBERED + 50):
        texts.of(Queued(f"job-{number}", number, None))
    assert len(texts._last) == REMEMBERED
