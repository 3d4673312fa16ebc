"""Texts of events: serialized once for all pages, never mixed up, and limited in number."""

from __future__ import annotations

import json

from bot.domain.events import JobProgress, QueueMoved, merge_events
from bot.web import serializers
from bot.web.sse_cache import MAX_JOBS, EventCache


def test_an_event_is_written_once_for_all_pages_that_keep_up() -> None:
    texts = EventCache()
    one, other = JobProgress("a", 1, 4, 2.0, {0: b"jpeg"}), JobProgress("b", 1, 4, 2.0, {0: b"jpeg"})
    first = texts.encode(one)
    assert first == b"event: frame\r\ndata: " + json.dumps(serializers.serialize_frame(one)).encode() + b"\r\n\r\n"
    assert texts.encode(other) != first
    assert texts.encode(one) is first
    merged = merge_events(one, JobProgress("a", 2, 4, 1.0, {1: b"newer"}))
    assert isinstance(merged, JobProgress)
    assert json.dumps(serializers.serialize_frame(merged)).encode() in texts.encode(merged)
    assert texts.encode(one) == first  # a slow page still gets its own text


def test_only_the_texts_of_the_last_jobs_are_kept() -> None:
    texts = EventCache()
    for number in range(MAX_JOBS + 50):
        texts.encode(QueueMoved(f"job-{number}", number, None))
    assert len(texts._last) == MAX_JOBS
