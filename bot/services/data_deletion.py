"""Deletes all data of a member: jobs, pictures, messages and preferences, however long that takes and whatever fails.

A deletion request is a row in SQL until it is complete. `run` works on all of them, job by job. Each step is visible in
the tables, so the work goes on after any crash. A front end deletes the messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from bot.domain.events import Feed, JobEnded
from bot.domain.job_states import is_end
from bot.domain.texts import PICTURES_DELETED
from bot.jobs.retention import remove_all_files
from bot.services.front_end_actions import FrontEndActions
from bot.store import DatabaseUnavailable, Store, StoredPicture
from bot.store.deletion import erasure, retention
from bot.store.deletion.erasure import ErasureRequest
from bot.store.deletion.retention import DeletionReason
from bot.store.jobs import destinations
from bot.store.members import export
from engine.contract import MalformedMessage

log = logging.getLogger(__name__)

POLL_SECONDS = 10.0  # the command line writes requests beside this process
RETRY_SECONDS = 1.0  # while a job must still stop
MAX_PAUSE_SECONDS = 60.0  # while all remaining work waits for a front end
REMOVAL_REASONS: tuple[DeletionReason, ...] = ("forgotten", "enlarged")


@dataclass(eq=False)
class DataDeletion:
    """Deletes members' data, for the bot and for the command line.

    `waits_for_discord`: until the front end can delete messages, jobs with messages wait for it.
    """

    store: Store
    cancel: Callable[[str], Awaitable[object]]
    remove_files: Callable[[Sequence[StoredPicture]], Awaitable[None]]
    feed: Feed
    front_end: FrontEndActions
    waits_for_discord: bool
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._requested = asyncio.Event()
        self._must_truncate_log = True  # a process that ended early may have left deleted rows in the log

    async def request_deletion(self, member: str, guild: str = "") -> int:
        """Begin to delete a member's data, everywhere or in one guild; return the number of jobs. Idempotent."""
        job_count = await self.store.write(erasure.request_erasure, ErasureRequest(member, guild, self.clock()))
        self._requested.set()
        return job_count

    async def count_jobs(self, member: str) -> int:
        """Return how many jobs of a member are stored."""
        return await self.store.query(export.count_jobs, member)

    async def is_under_way(self, member: str) -> bool:
        """Return whether a member's deletion is unfinished."""
        return any(request.member == member for request in await self.store.query(erasure.list_requests))

    async def run(self) -> None:
        """Work on deletion requests until cancelled."""
        pause = POLL_SECONDS
        while True:
            self._requested.clear()
            has_running = False
            has_requests = True
            try:
                has_running = await self.run_round()
                has_requests = bool(await self.store.query(erasure.list_requests))
            except (DatabaseUnavailable, OSError) as error:
                log.warning("data deletion: %s", error)
            pause = (
                RETRY_SECONDS if has_running else min(2 * pause, MAX_PAUSE_SECONDS) if has_requests else POLL_SECONDS
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._requested.wait()

    async def run_round(self) -> bool:
        """Do everything possible now; return True if a job must still stop. Work for a front end may wait longer."""
        requests = await self.store.query(erasure.list_requests)
        for request in requests:
            while await self.store.write(erasure.mark_batch_deleted, request, self.clock()):
                pass
        has_running = await self._delete_jobs()
        for request in requests:
            await self.store.write(erasure.erase_member_data, request)
            self._must_truncate_log |= await self.store.write(erasure.close_request, request)
        if self._must_truncate_log:  # what was deleted is still in the write-ahead log, and so is the request
            self._must_truncate_log = not await self.store.truncate_log()
        return has_running

    async def _delete_jobs(self) -> bool:
        last_id = ""
        has_running = False
        while marked_jobs := await self.store.query(retention.list_marked, REMOVAL_REASONS, last_id):
            reasons = dict(marked_jobs)
            stopped_jobs = [job for job in reasons if await self._ensure_stopped(job)]
            await remove_all_files(self.store, self.remove_files, list(reasons))
            await self._remove_rows([job for job in stopped_jobs if await self._delete_messages(job)], reasons)
            last_id = marked_jobs[-1][0]
            has_running = has_running or len(stopped_jobs) < len(reasons)
        return has_running

    async def _remove_rows(self, jobs: Sequence[str], reasons: Mapping[str, DeletionReason]) -> None:
        """Remove rows; other members' upscales keep their rows."""
        await self.store.write(
            retention.delete_rows, [job for job in jobs if reasons[job] == "forgotten"], self.clock()
        )
        await self.store.write(erasure.close_upscale_deletions, [job for job in jobs if reasons[job] == "enlarged"])

    async def _ensure_stopped(self, job: str) -> bool:
        """Return whether a job has ended, readable or not; else cancel it and look again in the next round."""
        state = await self.store.query(erasure.read_state, job)
        if state is None:
            return True
        if is_end(state):
            self.feed.publish(JobEnded(job, state, PICTURES_DELETED))
            return True
        try:
            await self.cancel(job)
        except (MalformedMessage, TypeError) as error:  # failed as a corrupt row: at the start, or by the dispatcher
            log.error("job %s: it is open, and its row cannot be read: %s", job, error)
        return False

    async def _delete_messages(self, job: str) -> bool:
        """Delete a job's messages; return whether none is left."""
        for role, delivery in await self.store.query(destinations.list_all_deliveries, job):
            if delivery.destination.kind != "discord" or not delivery.message:
                continue
            if self.front_end.delete_message is None:
                if self.waits_for_discord:
                    return False
                continue
            try:
                if not await self.front_end.delete_message(job, delivery):
                    log.info("job %s: one of its messages stays: Discord does not let us delete it", job)
            except ConnectionError as error:
                log.warning("job %s: %s", job, error)
                return False
            await self.store.write(erasure.delete_destination, job, role)
        return True
