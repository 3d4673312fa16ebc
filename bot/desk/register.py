"""Builds job views and accepted jobs from rows, running jobs and the forecast. Read-only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bot.desk.absent import absent
from bot.limits import Limits
from bot.queue.board import Board
from bot.queue.forecast import Forecast, Spot
from bot.states import over
from bot.store import Record, Store, Stored, reads, walks
from bot.views import Shot, Ticket, View
from engine.job import Recipe

MOST_SHOWN = 100  # waiting jobs


class Register:
    """Reads jobs for front ends."""

    def __init__(
        self, store: Store, board: Board, forecast: Forecast, *,
        limits: Limits, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store, self._board, self._forecast = store, board, forecast
        self._limits, self._clock = limits, clock

    async def record(self, job: str) -> Record:
        """Return a job's row. Raises `Refused` (404 or 410), also if its pictures were deleted."""
        found = await self._store.record(job)
        if found is None or found.deleted is not None:
            raise await absent(self._store, job, deleted=found is not None)
        return found

    async def of_a_walk(self, record: Record) -> bool:
        """Return whether an interpolation gave the recipe its mixed prompt: its own, or a parent's with the same prompt
        since.
        """
        found: Record | None = record
        while found is not None and isinstance(found.task, Recipe):
            if found.task.walk is not None:
                return found.task.walk.to is not None
            parent = await self._store.record(found.parent[0]) if found.parent else None
            found = parent if parent is not None and parent.prompt == found.prompt else None
        return False

    async def next_free(self, member: str) -> float | None:
        """Return when the first of a member's jobs ends, for the sentence of a refusal; None if unknown.

        The end of a running job is known best; without one, it is the end of the first that waits.
        """
        now = self._clock()
        runs = [run.record for run in self._board.runs.values() if run.record.member == member]
        ends = [self._forecast.eta(record, None, now) for record in runs]
        if not any(end is not None for end in ends):
            first = {record.account: record for record in reversed(await self._store.ask(reads.queued_of, member))}
            spots = [(record, await self._forecast.spot(record, rough=True)) for record in first.values()]
            ends = [self._forecast.eta(record, spot, now) for record, spot in spots]
        known = [end for end in ends if end is not None]
        return now + min(known) if known else None

    def next_room(self) -> float | None:
        """Return when the first of all running jobs ends, so that another may start; None if unknown."""
        now, runs = self._clock(), self._board.runs.values()
        said = [run.said + run.left for run in runs if run.left is not None]
        if said:  # each admission calls this: it must be cheap with a thousand runs
            return max(now, min(said))
        ends = (self._forecast.eta(run.record, None, now) for run in runs)
        return next((now + end for end in ends if end is not None), None)

    async def ticket(self, record: Record) -> Ticket:
        """Return the values that a member sees after a job was accepted."""
        task, spot = record.task, await self._forecast.spot(record, rough=True)
        recipe = task if isinstance(task, Recipe) else None
        return Ticket(
            job=record.id,
            ahead=spot.ahead if spot else 0,
            eta=self._forecast.eta(record, spot, self._clock()),
            worker=self._forecast.worker(record.pool, record.model),
            starting=self._forecast.starting(record.pool, record.model),
            notes=record.notes,
            prompt=record.prompt,
            steps=record.steps,
            sampler=task.sampler if isinstance(task, Recipe) else task.method,
            seed=recipe.seed if recipe else 0,
            count=record.images,
            cost=record.cost,
            private=record.private,
        )

    async def views(self, records: Sequence[Record]) -> list[View]:
        """Return views in the order of the records."""
        kept: dict[str, list[Stored]] = {}
        for one in await self._store.ask(reads.stored, [record.id for record in records]):
            kept.setdefault(one.job, []).append(one)
        walking = [one for one in records if isinstance(one.task, Recipe) and one.task.walk is not None]
        filmed = await self._store.ask(walks.ended_last, walking) if walking else set[str]()
        return [
            self._view(record, await self._forecast.spot(record), kept.get(record.id, []), record.id in filmed)
            for record in records
        ]

    def _view(self, record: Record, spot: Spot | None, kept: Sequence[Stored], walk: bool) -> View:
        images = [one for one in kept if one.kind == "image"]
        run = self._board.runs.get(record.id)
        return View(
            id=record.id,
            state=record.state,
            prompt=record.prompt,
            recipe=record.task,
            member_id=record.member,
            member_name=record.member_name,
            guild=record.guild,
            created=record.created,
            started=record.started,
            finished=record.ended,
            seconds=record.seconds,
            ms_per_step=record.ms_per_step,
            ahead=spot.ahead if spot else None,
            eta=None if over(record.state) else self._forecast.eta(record, spot, self._clock()),
            reason=record.reason,
            step=max(record.step, run.step) if run else record.step,
            of=record.steps,
            pictures=tuple(
                Shot(one.image, one.sha256, one.width, one.height, one.verdict, one.reviewed) for one in images
            ),
            ladders=tuple(one.image for one in kept if one.kind == "ladder"),
            parent=record.parent,
            action=record.action,
            notes=record.notes,
            cost=record.charged,
            cancelling=record.cancelling,
            worker=self._forecast.worker(record.pool, record.model),
            starting=self._forecast.starting(record.pool, record.model),
            why=self._forecast.why(record, spot, self._running(record)),
            private=record.private,
            check=record.check,
            deleted=record.deleted,
            channel=record.channel,
            walk=walk,
        )

    def _running(self, record: Record) -> int:
        """Return how many jobs of its member may run at once: by the rules at its admission, else the default."""
        caps = [cap for cap in (record.running_here, record.running_everywhere) if cap is not None]
        return min(caps, default=self._limits.running)

    async def queue(self, guild: str | None) -> list[View]:
        """Return active jobs, oldest first, then at most a hundred waiting jobs in fair order."""
        active = await self._store.ask(reads.active)
        outlook = await self._forecast.outlook()
        if outlook.complete:
            found = await self._store.ask(reads.some, list(outlook.spots))
            waiting = [found[job] for job in outlook.spots if job in found and found[job].state == "queued"]
        else:
            waiting = await self._store.ask(reads.queued, guild, MOST_SHOWN)
        shown = [one for one in (*active, *waiting) if guild in (None, one.guild) and one.deleted is None]
        return await self.views(shown[: len(active) + MOST_SHOWN])

    async def recent(self, guild: str | None, limit: int) -> list[View]:
        """Return the newest jobs first."""
        return await self.views(await self._store.ask(reads.newest, guild, limit))


def _shot(one: Stored) -> Shot:
    return Shot(one.image, one.sha256, one.width, one.height, one.verdict, one.reviewed)
