"""The feed: readers get the newest events, ends first, and a slow reader delays nobody."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from bot.domain.events import (
    Feed,
    JobEnded,
    JobProgress,
    JobSteered,
    ModelLoading,
    QueueMoved,
    Subscription,
    merge_events,
)
from bot.domain.steering import AmendmentView
from engine.contract import Recipe


def frame(job: str, step: int, *images: int) -> JobProgress:
    return JobProgress(job, step, 100, 1.0, {image: b"%d@%d" % (image, step) for image in images})


def made_change(job: str, step: int) -> JobSteered:
    view = AmendmentView(1, "made", step, 100, "", "ann", "Ann", "fox, blue", 0.0, "words")
    return JobSteered(job, view, cast(Recipe, None))


def publish_frames(feed: Feed, step: int, *jobs: str) -> None:
    for job in jobs:
        feed.publish(frame(job, step, 0))


def test_frames_merge_by_image_and_never_go_back_a_step():
    merged = merge_events(frame("a", 20, 0), frame("a", 10, 1))
    assert merged == JobProgress("a", 20, 100, 1.0, {0: b"0@20", 1: b"1@10"})
    assert merge_events(frame("a", 20, 0), JobEnded("a", "finished", "")) == JobEnded("a", "finished", "")
    assert merge_events(QueueMoved("a", 3, None), frame("a", 1, 0)) == frame("a", 1, 0)


@pytest.mark.asyncio
async def test_a_slow_reader_gets_ends_first_and_then_the_newest_events():
    feed = Feed()
    async with feed.subscribe() as stream:
        for step in range(50):
            feed.publish(frame("a", step, step % 2))
        feed.publish(QueueMoved("b", 4, 9.0))
        feed.publish(QueueMoved("b", 3, 7.0))
        feed.publish(frame("c", 1, 0))
        feed.publish(JobEnded("c", "failed", "why"))
        events = [await anext(stream) for _ in range(3)]
    assert events == [
        JobEnded("c", "failed", "why"),
        JobProgress("a", 49, 100, 1.0, {0: b"0@48", 1: b"1@49"}),
        QueueMoved("b", 3, 7.0),
    ]


@pytest.mark.asyncio
async def test_the_first_frame_that_shows_a_change_goes_before_those_of_other_jobs():
    feed = Feed()
    change = made_change("c", 7)
    async with feed.subscribe() as stream:
        publish_frames(feed, 7, "a", "b", "c")
        feed.publish(change)
        feed.publish(frame("c", 7, 0))  # its step 7 is yet to run
        events = [await anext(stream), await anext(stream)]
        publish_frames(feed, 8, "c", "a", "b")
        events += [await anext(stream) for _ in range(3)]
    assert events == [change, frame("a", 7, 0), frame("c", 8, 0), frame("b", 8, 0), frame("a", 8, 0)]


@pytest.mark.asyncio
async def test_a_frame_that_came_before_its_changes_answer_goes_first_too():
    feed = Feed()
    change = made_change("c", 7)
    async with feed.subscribe() as stream:
        publish_frames(feed, 8, "a", "b", "c")
        feed.publish(change)
        events = [await anext(stream) for _ in range(3)]
    assert events == [change, frame("c", 8, 0), frame("a", 8, 0)]


@pytest.mark.asyncio
async def test_a_rest_lasts_until_an_end_or_a_change_and_not_until_a_frame():
    feed = Feed()
    async with feed.subscribe() as stream:
        feed.publish(JobEnded("a", "finished", ""))
        async with asyncio.timeout(5):
            await stream.rest(60)
        await anext(stream)
        feed.publish(frame("b", 1, 0))
        rest = asyncio.create_task(stream.rest(60))
        await asyncio.sleep(0.01)
        assert not rest.done()
        feed.publish(made_change("b", 1))
        async with asyncio.timeout(5):
            await rest


@pytest.mark.asyncio
async def test_frames_and_queue_places_do_not_starve_each_other():
    feed = Feed()
    async with feed.subscribe() as stream:
        for number in range(1000):
            feed.publish(QueueMoved(f"waits {number}", number, None))
        feed.publish(frame("runs", 1, 0))
        assert await anext(stream) == frame("runs", 1, 0)
        events = []
        for step in range(2, 40):
            feed.publish(frame("runs", step, 0))
            events.append(await anext(stream))
        assert 2 <= sum(isinstance(one, QueueMoved) for one in events) <= 8


@pytest.mark.asyncio
async def test_a_job_that_waited_and_runs_gives_one_event_with_its_newest_state():
    feed = Feed()
    async with feed.subscribe() as events:
        feed.publish(QueueMoved("a", 0, None))
        feed.publish(frame("a", 1, 0))
        feed.publish(frame("b", 1, 0))
        feed.publish(QueueMoved("b", 0, None))
        feed.publish(JobEnded("c", "finished", ""))
        assert [await anext(events) for _ in range(3)] == [
            JobEnded("c", "finished", ""),
            frame("a", 1, 0),
            QueueMoved("b", 0, None),
        ]
        feed.close()
        assert [event async for event in events] == []


@pytest.mark.asyncio
async def test_model_loading_ranks_between_queue_places_and_frames():
    feed = Feed()
    async with feed.subscribe() as events:
        feed.publish(QueueMoved("a", 0, None))
        for percent in range(50):
            feed.publish(ModelLoading("a", "large", percent / 100))
        feed.publish(frame("b", 1, 0))
        assert [await anext(events) for _ in range(2)] == [frame("b", 1, 0), ModelLoading("a", "large", 0.49)]
        feed.publish(ModelLoading("a", "large", 1.0))
        feed.publish(JobProgress("a", 0, 100, 9.0))  # the start report comes by another path, and late
        async with feed.subscribe("a") as later_events:
            assert await anext(later_events) == ModelLoading("a", "large", 1.0)
        feed.publish(frame("a", 1, 0))
        assert await anext(events) == frame("a", 1, 0)
        feed.publish(ModelLoading("a", "large", 0.2))
        feed.publish(JobEnded("a", "finished", ""))
        feed.publish(ModelLoading("a", "large", 0.3))
        feed.close()
        assert [event async for event in events] == [JobEnded("a", "finished", "")]


@pytest.mark.asyncio
async def test_an_event_reaches_only_subscribers_of_its_job(monkeypatch):
    feed = Feed()
    offers = []
    monkeypatch.setattr(Subscription, "put_event", lambda one, event: offers.append((one.job, event.job)))
    for job in [*(f"other {number}" for number in range(100)), "a", None]:
        feed.subscribe(job)
    feed.publish(QueueMoved("a", 0, None))
    assert sorted(offers, key=str) == [("a", "a"), (None, "a")]


@pytest.mark.asyncio
async def test_a_new_subscriber_starts_with_the_newest_event_of_each_open_job():
    feed = Feed()
    feed.publish(frame("a", 5, 0))
    feed.publish(frame("b", 6, 0))
    feed.publish(JobEnded("b", "finished", ""))
    async with feed.subscribe("a") as job_events:
        feed.publish(frame("c", 1, 0))
        assert await anext(job_events) == frame("a", 5, 0)
    async with feed.subscribe() as all_events:
        assert {(await anext(all_events)).job for _ in range(2)} == {"a", "c"}


@pytest.mark.asyncio
async def test_the_feed_knows_its_subscribers_while_they_watch():
    feed = Feed()
    assert not feed.has_subscribers
    async with feed.subscribe("a"):
        assert feed.viewer_joined.is_set()
        assert (feed.is_watched("a"), feed.is_watched("b")) == (True, False)
        async with feed.subscribe(with_previews=False):
            assert not feed.is_watched("b")
        async with feed.subscribe():
            assert feed.is_watched("b")
    assert not feed.is_watched("a")
    assert not feed.has_subscribers


@pytest.mark.asyncio
async def test_a_waiting_reader_wakes_and_its_iteration_ends_with_the_feed():
    feed = Feed()
    events = feed.subscribe()
    read_task = asyncio.create_task(anext(events))
    await asyncio.sleep(0)
    feed.publish(QueueMoved("a", 0, None))
    assert await read_task == QueueMoved("a", 0, None)
    feed.publish(QueueMoved("a", 1, None))
    feed.close()
    assert [event async for event in events] == [QueueMoved("a", 1, None)]


@pytest.mark.asyncio
async def test_events_after_the_end_of_a_job_are_dropped():
    feed = Feed()
    async with feed.subscribe() as events:
        feed.publish(JobEnded("a", "finished", ""))
        feed.publish(frame("a", 99, 0))
        feed.publish(QueueMoved("a", 1, None))
        feed.publish(frame("b", 1, 0))
        assert [await anext(events) for _ in range(2)] == [JobEnded("a", "finished", ""), frame("b", 1, 0)]
    async with feed.subscribe() as later_events:
        assert await anext(later_events) == frame("b", 1, 0)
    assert list(feed._latest_events) == ["b"]
    for number in range(5000):
        feed.publish(JobEnded(str(number), "finished", ""))
    assert len(feed._ended_jobs) <= 4096
