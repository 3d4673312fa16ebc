"""Who is next, when a job will be done, and why it waits: the fair order laid out, kept until the queue changes.

To lay out a long queue takes time, and a busy evening changes it hundreds of times a second. So it is laid out once for
all who ask at the same time, and for a rough answer, as each admission gives one, not again for a multiple of what it
took: what came meanwhile has an estimated place.

Knows the store, the board and the live workers; changes nothing. Estimates are in seconds from now.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from bot.crowd import Crowd
from bot.fair import Account, Waiting, order
from bot.models import Crew, crews
from bot.queue.board import Board
from bot.rules.together import Together
from bot.sentences import starting
from bot.store import Record, Store, reads
from bot.waiting import Facts, why
from engine.job import ModelProgress, Presence

MOST = 1000  # a longer queue is not laid out: a place in it is an estimate
CHEAP = 0.005  # seconds: what took less is done whenever somebody asks
REST = 20  # what took more is done for rough answers at most in one part of so many of the time


@dataclass(frozen=True)
class Spot:
    """A place in the queue: jobs of the pool that start before it, and device-seconds until it is done, its own too.

    `others`: how many other members have one of these jobs; 0 where that was not counted.
    """

    ahead: int
    work: float
    pool: str
    model: str
    others: int = 0


@dataclass(frozen=True)
class Outlook:
    """The queue in fair order, pool after pool. `complete` is False when it was too long to lay out; `crowds` are for
    estimates.
    """

    spots: Mapping[str, Spot] = field(default_factory=dict)
    crowds: Mapping[str, Crowd] = field(default_factory=dict)
    complete: bool = True


class Forecast:
    """Ask it as often as you like: it reads the queue once for each change."""

    def __init__(
        self, store: Store, board: Board, workers: Callable[[], Mapping[str, Presence]], *,
        clock: Callable[[], float] = time.time, starting: Callable[[str], ModelProgress | None] = lambda pool: None,
        size: Callable[[str], int] = lambda model: 0,
    ) -> None:  # fmt: skip
        self._starting, self._size = starting, size
        self._store, self._board, self._workers, self._clock = store, board, workers, clock
        self.together = Together()  # as the dispatcher last read it
        self._version, self._rested = -1, 0.0
        self._outlook, self._laying = Outlook(), asyncio.Lock()

    async def outlook(self, *, rough: bool = False) -> Outlook:
        """Every waiting job's spot; a `rough` one may be of a moment ago."""
        async with self._laying:
            began, version = time.monotonic(), self._store.version
            if version != self._version and (began >= self._rested or not rough):
                self._outlook, self._version = await self._lay_out(), version
                took = time.monotonic() - began
                self._rested = began + (REST * took if took > CHEAP else 0.0)
        return self._outlook

    async def _lay_out(self) -> Outlook:
        crowds = {pool: Crowd(users) for pool, users in (await self._store.ask(reads.crowds)).items()}
        found = await self._store.ask(reads.waiting, MOST)
        if found is None:
            return Outlook({}, crowds, complete=False)
        waiting, accounts = found
        pools: dict[str, list[tuple[Waiting, str]]] = {}
        for one, model in waiting:
            pools.setdefault(one.account.partition("/")[0], []).append((one, model))
        return Outlook({job: spot for ones in pools.values() for job, spot in _spots(ones, accounts)}, crowds)

    async def spot(self, record: Record, *, rough: bool = False) -> Spot | None:
        """A waiting job's spot; None if it does not wait (any more)."""
        if record.state != "queued":
            return None
        outlook = await self.outlook(rough=rough)
        found = outlook.spots.get(record.id)
        if found is not None or (outlook.complete and not (rough and self._version != self._store.version)):
            return found
        turn = await self._store.ask(reads.turn, record)
        ahead, work = outlook.crowds.get(record.pool, Crowd()).before(turn)
        return Spot(ahead, max(work, record.cost), record.pool, record.model)

    def worker(self, pool: str, model: str) -> bool:
        """True if a live worker of the pool has the model ready."""
        crew = crews(self._workers()).get(pool)
        return crew is not None and (not model or model in crew.models)

    def starting(self, pool: str, model: str) -> str:
        """The sentence on a worker of the pool that is on its way, where none is there yet that has the model."""
        if self.worker(pool, model):
            return ""
        progress = self._starting(pool)
        theirs = progress is not None and (not self._workers() or progress.model == model)
        return starting(progress) if theirs else ""

    def wait(self, spot: Spot) -> float | None:
        """Seconds until a waiting job is done; None if nobody can run it."""
        if not self.worker(spot.pool, spot.model):
            return None
        crew = crews(self._workers())[spot.pool]
        fetching = 0.0 if _loaded(crew, spot.model) else self._board.loads.seconds(spot.model, self._clock())
        return (self._board.cost_left(spot.pool) + spot.work) / crew.workers + fetching

    def eta(self, record: Record, spot: Spot | None, now: float) -> float | None:
        """Seconds until a job is done; None if it is over or nobody can run it."""
        if spot is not None:
            return self.wait(spot)
        run = self._board.runs.get(record.id)
        if run is None or not self.worker(record.pool, record.model):
            return None
        said = run.seconds_left(now)
        crew = crews(self._workers())[record.pool]
        return self._board.cost_left(record.pool) / crew.workers if said is None else said

    def why(self, record: Record, spot: Spot | None, running: int) -> str:
        """Why a waiting job waits, in words; empty if it does not. `running`: how many of a member run at once."""
        return why(self._facts(record, spot, running)) if record.state == "queued" else ""

    def _facts(self, record: Record, spot: Spot | None, running: int) -> Facts:
        workers, model, now = self._workers(), record.model, self._clock()
        crew = crews(workers).get(record.pool)
        runs = [run.record for run in self._board.runs.values()]
        theirs = [one for one in runs if one.guild == record.guild]
        return Facts(
            model=model,
            starting=self.starting(record.pool, model),
            anyone=bool(workers),
            offered=self.worker(record.pool, model),
            loaded=crew is None or _loaded(crew, model),
            fetched=self._board.loads.done(model, now),
            size=self._size(model),
            fetching=self._board.loads.seconds(model, now),
            mine=sum(one.member == record.member for one in runs),
            mine_most=running,
            guild=len(theirs),
            guild_most=self.together.of(record.guild),
            channel=sum(one.channel == record.channel for one in theirs),
            channel_most=self.together.channels_of(record.guild).get(record.channel),
            ahead=spot.ahead if spot else 0,
            others=spot.others if spot else 0,
        )


def _loaded(crew: Crew, model: str) -> bool:
    return not model or model in crew.loaded


def _spots(ones: list[tuple[Waiting, str]], accounts: Mapping[str, Account]) -> Iterator[tuple[str, Spot]]:
    known, work, users = {one.job: (one, model) for one, model in ones}, 0.0, set[str]()
    for ahead, job in enumerate(order(accounts, [one for one, _ in ones])):
        one, model = known[job]
        work += one.cost
        yield job, Spot(ahead, work, one.account.partition("/")[0], model, len(users - {one.account}))
        users.add(one.account)
