"""Jobs that changed in SQL while the reply to the bot was lost."""

from __future__ import annotations

import time

import pytest

from bot.domain.events import JobEnded


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["finish", "requeue"])
async def test_a_change_in_sql_whose_reply_was_lost_reaches_the_active_jobs(workplace, until, ann, here, how):
    app = await workplace.house()
    worker, running = await workplace.worker()
    worker.go.clear()
    await until(lambda: app.services.live_workers())
    (ticket,) = await app.services.jobs.imagine("a lamp", ann, here)
    job = ticket.job
    await until(lambda: job in app.queue.active_jobs.by_id and app.queue.active_jobs.by_id[job].is_claimed)
    async with app.feed.subscribe(job) as events:
        if how == "finish":
            await app.store.end_job("finish", job, time.time(), 1.0)  # as with a commit whose reply was lost
        else:
            await app.store.requeue_job(job, time.time(), step=0, audit_note="lost")
        await worker.vanish(running)
        if how == "finish":
            async for event in events:
                if isinstance(event, JobEnded):
                    assert event.state == "finished"
                    break
            await until(lambda: job not in app.queue.active_jobs.by_id)
        else:
            await workplace.worker("another")
            await until(
                lambda: (
                    job in app.queue.active_jobs.by_id and app.queue.active_jobs.by_id[job].record.worker == "another"
                ),
                20,
            )
