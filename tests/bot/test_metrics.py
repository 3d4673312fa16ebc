"""What the queue's keepers bring about is counted: lost leases, returns to the queue, poison, refunds."""

from __future__ import annotations

import pytest

from bot.views import Place
from engine.job import Failed, Started

WEB = Place("web", {})


@pytest.mark.asyncio
async def test_claims_anew_returns_and_poison(workplace, until, ann):
    house = await workplace.house()
    hand = await workplace.hand("hand")
    await hand.announce()
    (ticket,) = await house.studio.imagine("a lamp --count 1", ann, WEB)
    job = await hand.handed()

    def count(name: str, **labels: str) -> float:
        return house.metrics.registry.get_sample_value(name, labels) or 0.0

    async def begun(epoch: int) -> None:
        await hand.say(Started(job=job.id, epoch=epoch, worker="hand"))

    first = await hand.bus.first_epoch()  # of this broker's store: an older claim would be one of a store that was lost
    await begun(first)
    await begun(first)  # the same once more
    await begun(first + 1)
    await until(lambda: count("darkroom_requeues_total", cause="regained") == 1)
    await hand.say(Failed(job=job.id, epoch=first + 1, reason="no room", blame="worker", retry=True))
    await until(lambda: count("darkroom_requeues_total", cause="failed") == 1)
    job = await hand.handed()
    await begun(first + 2)
    await hand.say(Failed(job=job.id, epoch=first + 2, reason="no room", blame="worker", retry=True))
    await until(lambda: count("darkroom_poisoned_jobs_total") == 1)
    record = await house.store.record(ticket.job)
    assert count("darkroom_job_failures_total", blame="worker") == 1
    assert count("darkroom_refunds_total", outcome="failed") == 1
    assert count("darkroom_refunded_device_seconds_total", outcome="failed") == pytest.approx(record.cost)


@pytest.mark.asyncio
async def test_a_finished_job_refunds_nothing_and_names_its_step(workplace, until, ann):
    house = await workplace.house()
    await workplace.worker()
    async with house.feed.subscribe() as moments:
        (ticket,) = await house.studio.imagine("a lamp --count 1", ann, WEB)
        async for moment in moments:
            if moment.job == ticket.job and type(moment).__name__ == "Settled":
                break

    def count(name: str, **labels: str) -> float | None:
        return house.metrics.registry.get_sample_value(name, labels)

    assert count("darkroom_job_seconds_count", outcome="finished") == 1
    assert count("darkroom_refunds_total", outcome="finished") is None
    assert count("darkroom_step_seconds_sum", model="embedded") == 0.002
    assert count("darkroom_first_preview_seconds_count") == 1
