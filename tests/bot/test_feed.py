"""The feed: readers get the newest events, ends first, and a slow reader delays nobody."""

from __future__ import annotations

import asyncio

import pytest

from bot.feed import Developing, Feed, Queued, Readying, Settled, Subscription, merge


def frame(job: str, step: int, *images: int) -> Developing:
    return Developing(job, step, 100, 1.0, {image: b"%d@%d" % (image, step) for image in images})


def test_frames_merge_by_image_and_never_go_back_a_step():
    merged = merge(frame("a", 20, 0), frame("a", 10, 1))
    assert merged == Developing("a", 20, 100, 1.0, {0: b"0@20", 1: b"1@10"})
    assert merge(frame("a", 20, 0), Settled("a", "finished", "")) == Settled("a", "finished", "")
    assert merge(Queued("a", 3, None), frame("a", 1, 0)) == frame("a", 1, 0)


@pytest.mark.asyncio
async def test_a_slow_reader_gets_ends_first_and_then_the_newest_events():
    feed = Feed()
    async with feed.subscribe() as moments:
        for step in range(50):
            feed.publish(frame("a", step, step % 2))
        feed.publish(Queued("b", 4, 9.0))
        feed.publish(Queued("b", 3, 7.0))
        feed.publish(frame("c", 1, 0))
        feed.publish(Settled("c", "failed", "why"))
        events = [await anext(moments) for _ in range(3)]
    assert events == [
        Settled("c", "failed", "why"),
        Developing("a", 49, 100, 1.0, {0: b"0@48", 1: b"1@49"}),
        Queued("b", 3, 7.0),
    ]


@pytest.mark.asyncio
async def test_frames_and_queue_places_do_not_starve_each_other():
    feed = Feed()
    async with feed.subscribe() as moments:
        for number in range(1000):
            feed.publish(Queued(f"waits {number}", number, None))
        feed.publish(frame("runs", 1, 0))
        assert await anext(moments) == frame("runs", 1, 0)
        events = []
        for step in range(2, 40):
            feed.publish(frame("runs", step, 0))
            events.append(await anext(moments))
        assert 2 <= sum(isinstance(one, Queued) for one in events) <= 8


@pytest.mark.asyncio
async def test_a_job_that_waited_and_runs_gives_one_event_with_its_newest_state():
    feed = Feed()
    async with feed.subscribe() as moments:
        feed.publish(Queued("a", 0, None))
        feed.publish(frame("a", 1, 0))
        feed.publish(frame("b", 1, 0))
        feed.publish(Queued("b", 0, None))
        feed.publish(Settled("c", "finished", ""))
        assert [await anext(moments) for _ in range(3)] == [
            Settled("c", "finished", ""), frame("a", 1, 0), Queued("b", 0, None),
        ]  # fmt: skip
        feed.close()
        assert [moment async for moment in moments] == []


@pytest.mark.asyncio
async def test_model_loading_ranks_between_queue_places_and_frames():
    feed = Feed()
    async with feed.subscribe() as moments:
        feed.publish(Queued("a", 0, None))
        for percent in range(50):
            feed.publish(Readying("a", "large", percent / 100))
        feed.publish(frame("b", 1, 0))
        assert [await anext(moments) for _ in range(2)] == [frame("b", 1, 0), Readying("a", "large", 0.49)]
        feed.publish(Readying("a", "large", 1.0))
        feed.publish(Developing("a", 0, 100, 9.0))  # the start report takes another way and comes late
        async with feed.subscribe("a") as later:
            assert await anext(later) == Readying("a", "large", 1.0)
        feed.publish(frame("a", 1, 0))
        assert await anext(moments) == frame("a", 1, 0)
        feed.publish(Readying("a", "large", 0.2))
        feed.publish(Settled("a", "finished", ""))
        feed.publish(Readying("a", "large", 0.3))
        feed.close()
        assert [moment async for moment in moments] == [Settled("a", "finished", "")]


@pytest.mark.asyncio
async def test_an_event_reaches_only_subscribers_of_its_job(monkeypatch):
    feed, offers = Feed(), []
    monkeypatch.setattr(Subscription, "offer", lambda one, moment: offers.append((one.job, moment.job)))
    for job in [*(f"other {number}" for number in range(100)), "a", None]:
        feed.subscribe(job)
    feed.publish(Queued("a", 0, None))
    assert sorted(offers, key=str) == [("a", "a"), (None, "a")]


@pytest.mark.asyncio
async def test_a_new_subscriber_starts_with_the_newest_event_of_each_open_job():
    feed = Feed()
    feed.publish(frame("a", 5, 0))
    feed.publish(frame("b", 6, 0))
    feed.publish(Settled("b", "finished", ""))
    async with feed.subscribe("a") as only:
        feed.publish(frame("c", 1, 0))
        assert await anext(only) == frame("a", 5, 0)
    async with feed.subscribe() as everything:
        assert {(await anext(everything)).job for _ in range(2)} == {"a", "c"}


@pytest.mark.asyncio
async def test_the_feed_knows_its_subscribers_while_they_watch():
    feed = Feed()
    assert not feed.heard
    async with feed.subscribe("a"):
        assert feed.joined.is_set()
        assert (feed.watched("a"), feed.watched("b")) == (True, False)
        async with feed.subscribe(previews=False):
            assert not feed.watched("b")
        async with feed.subscribe():
            assert feed.watched("b")
    assert not feed.watched("a")
    assert not feed.heard


@pytest.mark.asyncio
async def test_a_waiting_reader_wakes_and_its_iteration_ends_with_the_feed():
    feed = Feed()
    moments = feed.subscribe()
    reading = asyncio.create_task(anext(moments))
    await asyncio.sleep(0)
    feed.publish(Queued("a", 0, None))
    assert await reading == Queued("a", 0, None)
    feed.publish(Queued("a", 1, None))
    feed.close()
    assert [moment async for moment in moments] == [Queued("a", 1, None)]


@pytest.mark.asyncio
async def test_events_after_the_end_of_a_job_are_dropped():
    feed = Feed()
    async with feed.subscribe() as moments:
        feed.publish(Settled("a", "finished", ""))
        feed.publish(frame("a", 99, 0))
        feed.publish(Queued("a", 1, None))
        feed.publish(frame("b", 1, 0))
        assert [await anext(moments) for _ in range(2)] == [Settled("a", "finished", ""), frame("b", 1, 0)]
    async with feed.subscribe() as later:
        assert await anext(later) == frame("b", 1, 0)
    assert list(feed._newest) == ["b"]
    for number in range(5000):
        feed.publish(Settled(str(number), "finished", ""))
    assert len(feed._ended) <= 4096
