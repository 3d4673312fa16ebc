"""Pauses, resumes, prioritises and paces running jobs.

A request goes once to the job's worker, and nothing stores it. So a job that moves to another worker is not paused
there, and a request fails while the broker is away. Pauses end after 15 minutes in total. A paused job keeps its
worker, its snapshots and its place; `ActiveJobs` knows of the pause, so that other jobs may use its rows. Knows the
bus; checks no permissions.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bot.domain.errors import UserError
from bot.domain.job_states import is_end
from bot.queue.active_jobs import ActiveJobs
from bot.store import JobRecord
from engine.bus import BrokerUnreachable, Bus
from engine.contract import MAX_PACE_SECONDS, ControlMessage, Recipe

PAUSED_TEXT = "Paused: it keeps its place, and resumes by itself after 15 minutes, or sooner if others need the room."
RESUMED_TEXT = "Resumed."
PRIORITY_TEXT = "Its priority among the author's jobs is now {:g}."
UPSCALE_TEXT = "An upscale is done in one go, so it cannot be paused or prioritised."
WAITING_TEXT = "It has not begun, so it cannot be paused or prioritised yet."
BROKER_AWAY_TEXT = "The workers cannot be reached just now. Try again in a moment."


class JobControl:
    """Each method returns a sentence, or raises `UserError` if the job does not run or the broker is away."""

    def __init__(self, bus: Bus, active_jobs: ActiveJobs, *, clock: Callable[[], float] = time.time) -> None:
        self._bus = bus
        self._active_jobs = active_jobs
        self._clock = clock

    async def pause(self, record: JobRecord) -> str:
        await self._send(record, ControlMessage(job=record.id, action="pause"))
        self._active_jobs.paused_since.setdefault(
            record.id, self._clock()
        )  # a second pause gets the remaining time of the first
        return PAUSED_TEXT

    async def resume(self, record: JobRecord) -> str:
        await self._send(record, ControlMessage(job=record.id, action="resume"))
        self._active_jobs.paused_since.pop(record.id, None)
        return RESUMED_TEXT

    async def prioritise(self, record: JobRecord, weight: float) -> str:
        """Set the job's weight among the author's jobs: above 0, at most 1000, default 1."""
        await self._send(record, ControlMessage(job=record.id, action="weigh", weight=weight))
        return PRIORITY_TEXT.format(weight)

    async def set_pace(self, record: JobRecord, seconds: float) -> None:
        """Let the job's steps begin at least so many seconds apart; 0: as soon as they can."""
        await self._send(record, ControlMessage(job=record.id, action="pace", pace=min(seconds, MAX_PACE_SECONDS)))

    async def _send(self, record: JobRecord, message: ControlMessage) -> None:
        if not isinstance(record.task, Recipe):
            raise UserError(UPSCALE_TEXT)
        if is_end(record.state):
            raise UserError(f"Too late: it has {record.state} already.")
        if record.state != "running":
            raise UserError(WAITING_TEXT)
        try:
            await self._bus.send_control(message)
        except BrokerUnreachable as error:
            raise UserError(BROKER_AWAY_TEXT) from error
