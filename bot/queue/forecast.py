"""Places in the queue, ETAs and wait reasons, from the fair order laid out and cached until the queue changes.

To lay out a long queue takes time, and a busy evening changes it hundreds of times a second. So concurrent callers
share one layout. Rough answers, as at each admission, reuse a layout for a multiple of the time it took; newer jobs
then get an estimated place.

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

MOST = 1000  # a longer queue is not laid out; its places are estimates
CHEAP = 0.005  # seconds; a layout that took less is repeated at each call
REST = 20  # a slower layout is reused for rough answers for this many times its duration


@dataclass(frozen=True)
class Spot:
    """A place in the queue. `ahead`: jobs of the pool that start first; `work`: device-seconds until it is done.

    `others`: how many other members have a job ahead; 0 if not counted.
    """

    ahead: int
    work: float
    pool: str
    model: str
    others: int = 0


@dataclass(frozen=True)
class Outlook:
    """The queue laid out in fair order, pool by pool. `complete`: it was short enough; `crowds`: for estimates."""

    spots: Mapping[str, Spot] = field(default_factory=dict)
    crowds: Mapping[str, Crowd] = field(default_factory=dict)
    complete: bool = True


class Forecast:
    """Answers about the queue; reads it at most once per change, so calls are cheap."""

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
        """Return every waiting job's place. A `rough` answer may be a moment old."""
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
        """Return a waiting job's place; None if it does not wait (any more)."""
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
        """Return True if a live worker of the pool offers the model."""
        crew = crews(self._workers()).get(pool)
        return crew is not None and (not model or model in crew.models)

    def starting(self, pool: str, model: str) -> str:
        """Return the sentence about a starting worker of the pool; empty if a live one offers the model."""
        if self.worker(pool, model):
            return ""
        progress = self._starting(pool)
        theirs = progress is not None and (not self._workers() or progress.model == model)
        return starting(progress) if theirs else ""

    def wait(self, spot: Spot) -> float | None:
        """Return the seconds until a waiting job is done; None if no worker can run it."""
        if not self.worker(spot.pool, spot.model):
            return None
        crew = crews(self._workers())[spot.pool]
        fetching = 0.0 if _loaded(crew, spot.model) else self._board.loads.seconds(spot.model, self._clock())
        return (self._board.cost_left(spot.pool) + spot.work) / crew.workers + fetching

    def eta(self, record: Record, spot: Spot | None, now: float) -> float | None:
        """Return the seconds until a job is done; None if it is over or no worker can run it."""
        if spot is not None:
            return self.wait(spot)
        run = self._board.runs.get(record.id)
        if run is None or not self.worker(record.pool, record.model):
            return None
        said = run.seconds_left(now)
        crew = crews(self._workers())[record.pool]
        return self._board.cost_left(record.pool) / crew.workers if said is None else said

    def why(self, record: Record, spot: Spot | None, running: int) -> str:
        """Return the sentence why a job waits; empty if it does not. `running`: the member's limit of jobs at once."""
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
