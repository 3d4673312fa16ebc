"""Pauses, resumes and prioritises running jobs.

A request goes once to the job's worker and is stored nowhere. So a job that moves to another worker is not paused
there, pauses end after 15 minutes in total, and a request fails while the broker is away. A paused job keeps its
worker, its snapshots and its place; the board knows of the pause, so that other jobs may use its rows. Knows the bus;
checks no permissions.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bot.queue.board import Board
from bot.refused import Refused
from bot.states import over
from bot.store import Record
from engine.bus import Bus, Unreachable
from engine.job import Recipe, Steer

PAUSED = "Paused: it keeps its place, and resumes by itself after 15 minutes, or sooner if others need the room."
RESUMED = "Resumed."
WEIGHED = "Its priority among the author's jobs is now {:g}."
WHOLE = "An upscale is done in one go, so it cannot be paused or prioritised."
WAITS = "It has not begun, so it cannot be paused or prioritised yet."
AWAY = "The workers cannot be reached just now. Try again in a moment."


class Steering:
    """Each method returns a sentence, or raises `Refused` if the job does not run or the broker is away."""

    def __init__(self, bus: Bus, board: Board, *, clock: Callable[[], float] = time.time) -> None:
        self._bus, self._board, self._clock = bus, board, clock

    async def pause(self, record: Record) -> str:
        await self._say(record, Steer(job=record.id, deed="pause"))
        self._board.paused.setdefault(record.id, self._clock())  # a second pause gets the remaining time of the first
        return PAUSED

    async def resume(self, record: Record) -> str:
        await self._say(record, Steer(job=record.id, deed="resume"))
        self._board.paused.pop(record.id, None)
        return RESUMED

    async def prioritise(self, record: Record, weight: float) -> str:
        """Set the job's weight among the author's jobs: above 0, at most 1000, default 1."""
        await self._say(record, Steer(job=record.id, deed="weigh", weight=weight))
        return WEIGHED.format(weight)

    async def _say(self, record: Record, steer: Steer) -> None:
        if not isinstance(record.task, Recipe):
            raise Refused(WHOLE)
        if over(record.state):
            raise Refused(f"Too late: it has {record.state} already.")
        if record.state != "running":
            raise Refused(WAITS)
        try:
            await self._bus.steer(steer)
        except Unreachable as error:
            raise Refused(AWAY) from error
