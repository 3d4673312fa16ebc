"""Pausing a job that runs, letting it go on, and weighing it beside the other jobs of its author.

Said once to the worker that runs it, and stored nowhere: a job that moves to another worker runs on, its pauses end by
themselves after a quarter of an hour together, and what is said while the broker is away is refused. A paused job keeps
its worker, its snapshots and its place; the board knows that it rests, so that its rows may go to others. Knows the
bus; nothing of who may do it.
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

PAUSED = "Paused: it keeps its place, and goes on by itself after 15 minutes, or sooner if others need the room."
RESUMED = "It goes on."
WEIGHED = "Beside other jobs of its author it now weighs {:g}."
WHOLE = "An enlargement is done in one go, so it cannot be steered."
WAITS = "It has not begun, so it cannot be steered yet."
AWAY = "The workers cannot be reached just now. Try again in a moment."


class Steering:
    """Each method says what happened. Raises `Refused` where the job does not run, or nobody can be told."""

    def __init__(self, bus: Bus, board: Board, *, clock: Callable[[], float] = time.time) -> None:
        self._bus, self._board, self._clock = bus, board, clock

    async def pause(self, record: Record) -> str:
        await self._say(record, Steer(job=record.id, deed="pause"))
        self._board.paused.setdefault(record.id, self._clock())  # a second pause has what the first has left
        return PAUSED

    async def resume(self, record: Record) -> str:
        await self._say(record, Steer(job=record.id, deed="resume"))
        self._board.paused.pop(record.id, None)
        return RESUMED

    async def prioritise(self, record: Record, weight: float) -> str:
        """`weight`: above 0, at most 1000; 1 is what every job has."""
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
