"""Detects cancels and requeues that `darkroom jobs` made in SQL from another process.

SQL has the change already; this task tells the broker, the workers and the bot within a second or two. It reads the
outside changes from the audit, and decides nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from bot.domain.job_states import JobState, is_end
from bot.domain.periodic import run_periodically
from bot.queue.job_completion import JobCompletion
from bot.store import Store, Transition
from bot.store.jobs.records import AuditEntry
from bot.store.transitions import job_admin
from engine.process.log_format import log_context

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0


class ExternalChangeWatcher:
    """Run `run` as a task. `cancel` cancels one job that a worker may have."""

    def __init__(self, store: Store, completion: JobCompletion, cancel: Callable[[str], Awaitable[str]]) -> None:
        self._store = store
        self._completion = completion
        self._cancel = cancel
        self._last_line: int | None = None  # the last audit line that was handled
        self._handled: set[tuple[int, float]] = set()  # handled lines just before it: number and time

    async def run(self) -> None:
        """Run rounds until cancelled. Retry after an outage of broker or database."""
        await run_periodically(self.run_round, INTERVAL_SECONDS, "outside changes", log)

    async def prepare(self) -> None:
        """Start at the current audit line: the bot reads earlier changes from the tables."""
        self._last_line, entries = await self._store.query(
            job_admin.list_external_changes, await self._store.query(job_admin.read_last_line)
        )
        self._handled = _line_keys(entries)

    async def run_round(self) -> None:
        """Handle all outside changes since the last round."""
        if self._last_line is None:
            await self.prepare()
            return
        last_line, entries = await self._store.query(job_admin.list_external_changes, self._last_line)
        for number, entry in entries.items():
            if (number, entry.created_at) not in self._handled:
                with log_context(entry.job):
                    await self._apply_change(entry)
                self._handled.add((number, entry.created_at))
        self._last_line, self._handled = last_line, self._handled & _line_keys(entries)

    async def _apply_change(self, entry: AuditEntry) -> None:
        record = await self._store.get_job(entry.job)
        if record is None:
            return
        self._store.version += 1  # another process changed the queue
        if entry.reason == job_admin.CANCEL_NOTE:
            log.info("job %s: %s", entry.job, entry.reason)
        if entry.reason == job_admin.CANCEL_NOTE and record.state == "cancelled" and entry.target == "cancelled":
            self._completion.announce_end(Transition(record, cast(JobState, entry.source)))
            await self._completion.clear_broker(record, tombstone=True)
        elif entry.reason == job_admin.CANCEL_NOTE and not is_end(record.state):
            await self._cancel(entry.job)
        elif entry.reason == job_admin.REQUEUE_NOTE and record.attempt == entry.attempt and not is_end(record.state):
            await self._completion.announce_requeue(record, entry.reason, "operator")
            if entry.epoch:  # the old claim; another worker may have a new one by now
                await self._completion.revoke_claim(record.id, entry.epoch)


def _line_keys(entries: Mapping[int, AuditEntry]) -> set[tuple[int, float]]:
    return {(number, entry.created_at) for number, entry in entries.items()}
