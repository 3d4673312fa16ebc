"""Cancels jobs: one UPDATE while a job waits; once sent, a flag in SQL and a tombstone on the broker for its worker.

Knows the store, the bus and the live workers; does not check permissions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from bot.domain.errors import UserError
from bot.domain.job_states import is_end
from bot.queue.active_jobs import ActiveJobs
from bot.queue.job_completion import JobCompletion
from bot.queue.model_catalog import group_by_pool
from bot.store import Store
from engine.bus import BrokerUnreachable, Bus
from engine.contract import Presence

log = logging.getLogger(__name__)


class JobCanceller:
    """Cancels one job at a time."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        active_jobs: ActiveJobs,
        completion: JobCompletion,
        workers: Callable[[], Mapping[str, Presence]],
    ) -> None:
        self._store = store
        self._bus = bus
        self._active_jobs = active_jobs
        self._completion = completion
        self._workers = workers

    async def cancel(self, job: str) -> str:
        """Cancel a job, and return a sentence on the outcome. Raises `UserError` (404) for an unknown job."""
        record = await self._completion.request_cancel(job)
        if record is None:
            raise UserError("There is no such job.", 404)
        if record.state == "cancelled":
            return "Cancelled before it began; nothing was charged." if record.started is None else "Cancelled."
        if is_end(record.state):
            return f"Too late: it has {record.state} already."
        active_job = self._active_jobs.by_id.get(job)
        if active_job is not None:
            active_job.record = record
        try:
            await self._bus.cancel(job)
        except BrokerUnreachable as error:  # SQL has the flag, and the patrol repeats the tombstone
            log.warning("job %s: %s", job, error)
        if record.pool not in group_by_pool(self._workers()):
            done_share = active_job.done_share if active_job else 0.0
            await self._completion.cancel(job, None, done_share=done_share, audit_note="no worker is alive")
            return "Cancelled; no worker was online."
        return "Cancelling: it stops at its next step, and only the steps it ran are charged."
