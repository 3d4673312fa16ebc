"""Texts of events and jobs: serialized once for all pages, never mixed up, and limited in number."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from bot.domain.dto import JobView, Member
from bot.domain.events import JobProgress, QueueMoved, merge_events
from bot.web.answers import describe_job
from bot.web.sse import MAX_JOBS, EventCache, JobCache, serialize_frame
from engine.contract import Concept, Recipe


def test_an_event_is_written_once_for_all_pages_that_keep_up() -> None:
    texts = EventCache()
    one = JobProgress("a", 1, 4, 2.0, {0: b"jpeg"})
    other = JobProgress("b", 1, 4, 2.0, {0: b"jpeg"})
    first = texts.encode(one)
    assert first == b"event: frame\r\ndata: " + msgspec.json.encode(serialize_frame(one)) + b"\r\n\r\n"
    assert texts.encode(other) != first
    assert texts.encode(one) is first
    merged = merge_events(one, JobProgress("a", 2, 4, 1.0, {1: b"newer"}))
    assert isinstance(merged, JobProgress)
    assert msgspec.json.encode(serialize_frame(merged)) in texts.encode(merged)
    assert texts.encode(one) == first  # a slow page still gets its own text


def test_only_the_texts_of_the_last_jobs_are_kept() -> None:
    texts = EventCache()
    for number in range(MAX_JOBS + 50):
        texts.encode(QueueMoved(f"job-{number}", number, None))
    assert len(texts._last) == MAX_JOBS


RECIPE = Recipe(
    concepts=(Concept(text="a sun"),),
    model="embedded",
    sampler="ddpm",
    steps=20,
    seed=7,
    guidance=3.0,
    width=64,
    height=64,
    dtype="float32",
)
VIEW = JobView(
    id="01ARZ3NDEKTSV4RRFFQ69G5FAV",
    state="running",
    prompt="a sun",
    task=RECIPE,
    member_id="web:1",
    member_name="A",
    guild="web:chatroom",
    created=100.0,
    started=101.0,
    finished=None,
    seconds=None,
    ms_per_step=None,
    jobs_ahead=None,
    eta=3.0,
    reason="",
    step=4,
    total_steps=20,
    pictures=(),
    ladder_images=(),
    parent_image=None,
    action="imagine",
)
READERS = (
    Member("web:1", "A", "web:chatroom"),
    Member("web:2", "B", "web:chatroom"),
    Member("web:1", "A", "web:chatroom", is_moderator=True),
    Member("web:2", "B", "web:chatroom", is_moderator=True),
)


def encode_and_read(view: JobView, reader: Member) -> object:
    return msgspec.json.decode(msgspec.json.encode(describe_job(view, reader)))


def test_everybody_reads_a_job_as_themselves_and_as_it_is_now() -> None:
    cache = JobCache()
    for view in (VIEW, replace(VIEW, step=5), replace(VIEW, state="finished", finished=110.0), VIEW):
        for reader in READERS:
            assert msgspec.json.decode(cache.encode(view, reader)) == encode_and_read(view, reader)
    assert msgspec.json.decode(cache.encode_list([VIEW, VIEW], READERS[1])) == {
        "jobs": [encode_and_read(VIEW, READERS[1])] * 2
    }


def test_a_job_is_written_once_for_all_who_see_the_same() -> None:
    cache = JobCache()
    first = cache.encode(VIEW, READERS[1])
    assert cache.encode(replace(VIEW), replace(READERS[1], id="web:3")) is first
    for number in range(MAX_JOBS + 50):
        cache.encode(replace(VIEW, id=f"job-{number}"), READERS[1])
    assert len(cache._last) == MAX_JOBS
