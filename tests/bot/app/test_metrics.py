"""Metrics count lost leases, requeues, poison jobs and refunds."""

from __future__ import annotations

import pytest

from bot.domain.dto import Destination
from engine.contract import JobFailed, JobStarted

WEB = Destination("web", {})


@pytest.mark.asyncio
async def test_metrics_count_reclaims_requeues_and_poison_jobs(harness, wait_until, ann):
    app = await harness.open_app()
    worker = await harness.make_worker("hand")
    await worker.announce()
    (accepted,) = await app.services.jobs.imagine("a lamp --count 1", ann, WEB)
    job = await worker.take_job()

    def count(name: str, **labels: str) -> float:
        return app.metrics.registry.get_sample_value(name, labels) or 0.0

    async def report_start(epoch: int) -> None:
        await worker.publish_result(JobStarted(job=job.id, epoch=epoch, worker="hand"))

    first = await worker.bus.read_first_epoch()  # an older epoch would belong to a broker store that was lost
    await report_start(first)
    await report_start(first)  # the same report again
    await report_start(first + 1)
    await wait_until(lambda: count("darkroom_requeues_total", cause="reclaimed") == 1)
    await worker.publish_result(JobFailed(job=job.id, epoch=first + 1, reason="no room", blame="worker", retry=True))
    await wait_until(lambda: count("darkroom_requeues_total", cause="failed") == 1)
    job = await worker.take_job()
    await report_start(first + 2)
    await worker.publish_result(JobFailed(job=job.id, epoch=first + 2, reason="no room", blame="worker", retry=True))
    await wait_until(lambda: count("darkroom_poisoned_jobs_total") == 1)
    record = await app.store.get_job(accepted.job)
    assert count("darkroom_job_failures_total", blame="worker") == 1
    assert count("darkroom_refunds_total", outcome="failed") == 1
    assert count("darkroom_refunded_device_seconds_total", outcome="failed") == pytest.approx(record.cost)


@pytest.mark.asyncio
async def test_a_finished_job_refunds_nothing_and_records_its_step_time(harness, wait_until, ann):
    app = await harness.open_app()
    await harness.start_worker()
    async with app.feed.subscribe() as events:
        (accepted,) = await app.services.jobs.imagine("a lamp --count 1", ann, WEB)
        async for event in events:
            if event.job == accepted.job and type(event).__name__ == "JobEnded":
                break

    def count(name: str, **labels: str) -> float | None:
        return app.metrics.registry.get_sample_value(name, labels)

    assert count("darkroom_job_seconds_count", outcome="finished") == 1
    assert count("darkroom_refunds_total", outcome="finished") is None
    assert count("darkroom_step_seconds_sum", model="embedded") == 0.002
    assert count("darkroom_first_preview_seconds_count") == 1
