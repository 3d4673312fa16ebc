"""The patrol finds jobs that changed in SQL while the bot lost the reply."""

from __future__ import annotations

import time

import pytest

from bot.domain.events import JobEnded
from shared.active_jobs import is_claimed


@pytest.mark.asyncio
@pytest.mark.parametrize("end_method", ["finish", "requeue"])
async def test_a_change_in_sql_whose_reply_was_lost_reaches_the_active_jobs(
    harness, wait_until, ann, destination, end_method
):
    app = await harness.open_app()
    worker, worker_task = await harness.start_worker()
    worker.run_gate.clear()
    await wait_until(lambda: app.services.live_workers())
    (accepted,) = await app.services.jobs.imagine("a lamp", ann, destination)
    job = accepted.job
    await wait_until(lambda: is_claimed(app, job))
    async with app.feed.subscribe(job) as events:
        if end_method == "finish":
            await app.store.end_job("finish", job, time.time(), 1.0)  # as with a commit whose reply was lost
        else:
            await app.store.requeue_job(job, time.time(), step=0, audit_note="lost")
        await worker.vanish(worker_task)
        if end_method == "finish":
            async for event in events:
                if isinstance(event, JobEnded):
                    assert event.state == "finished"
                    break
            await wait_until(lambda: job not in app.queue.active_jobs.by_id)
        else:
            await harness.start_worker("another")
            await wait_until(
                lambda: (
                    job in app.queue.active_jobs.by_id and app.queue.active_jobs.by_id[job].record.worker == "another"
                ),
                20,
            )
