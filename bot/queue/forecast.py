"""Who is next, when a job will be done, and why it waits: the fair order laid out, kept until the queue changes.

Knows the store, the board and the live workers; changes nothing. Estimates are in seconds from now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from bot.fair import Account, Waiting, order
from bot.models import crews
from bot.queue.board import Board
from bot.rules.together import Together
from bot.store import Record, Store, reads
from engine.job import Presence

MOST = 1000  # a longer queue is not laid out: a place in it is an estimate


@dataclass(frozen=True)
class Spot:
    """A place in the queue: jobs of the pool that start before it, and device-seconds until it is done, its own too."""

    ahead: int
    work: float
    pool: str
    model: str


@dataclass(frozen=True)
class Outlook:
    """The queue in fair order, pool after pool. `complete` is False when it was too long to lay out."""

    spots: Mapping[str, Spot] = field(default_factory=dict)
    complete: bool = True


class Forecast:
    """Ask it as often as you like: it reads the queue once for each change."""

    def __init__(self, store: Store, board: Board, workers: Callable[[], Mapping[str, Presence]]) -> None:
        self._store, self._board, self._workers = store, board, workers
        self.together = Together()  # as the dispatcher last read it
        self._version = -1
        self._outlook = Outlook()

    async def outlook(self) -> Outlook:
        """Every waiting job's spot."""
        version = self._store.version
        if version != self._version:
            self._outlook = await self._lay_out()
            self._version = version
        return self._outlook

    async def _lay_out(self) -> Outlook:
        found = await self._store.ask(reads.waiting, MOST)
        if found is None:
            return Outlook({}, complete=False)
        waiting, accounts = found
        pools: dict[str, list[tuple[Waiting, str]]] = {}
        for one, model in waiting:
            pools.setdefault(one.account.partition("/")[0], []).append((one, model))
        return Outlook({job: spot for ones in pools.values() for job, spot in _spots(ones, accounts)})

    async def spot(self, record: Record) -> Spot | None:
        """A waiting job's spot; None if it does not wait (any more)."""
        if record.state != "queued":
            return None
        outlook = await self.outlook()
        if outlook.complete:
            return outlook.spots.get(record.id)
        ahead, work = await self._store.ask(reads.before, record)
        return Spot(ahead, work + record.cost, record.pool, record.model)

    def worker(self, pool: str, model: str) -> bool:
        """True if a live worker of the pool has the model ready."""
        crew = crews(self._workers()).get(pool)
        return crew is not None and (not model or model in crew.models)

    def wait(self, spot: Spot) -> float | None:
        """Seconds until a waiting job is done; None if nobody can run it."""
        if not self.worker(spot.pool, spot.model):
            return None
        return (self._board.cost_left(spot.pool) + spot.work) / crews(self._workers())[spot.pool].workers

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
        if record.state != "queued":
            return ""
        if not self.worker(record.pool, record.model):
            return f"No worker is online for {record.model}." if record.model else "No worker is online."
        mine = sum(run.record.member == record.member for run in self._board.runs.values())
        if mine >= running:
            return f"{mine} of this member's run already: one of them must end first."
        if said := self._full(record):
            return said
        if spot is not None and spot.ahead:
            return f"{spot.ahead} ahead of it."
        return "Next in line: it starts when there is room."

    def _full(self, record: Record) -> str:
        """Why no more of its server or channel run now, in words; empty if more may."""
        most, channel = self.together.of(record.guild), self.together.channels_of(record.guild).get(record.channel)
        theirs = [run.record for run in self._board.runs.values() if run.record.guild == record.guild]
        if most == 0:
            return "Nothing is begun on this server at present."
        if most is not None and len(theirs) >= most:
            return f"{len(theirs)} of this server's run already: one of them must end first."
        here = sum(one.channel == record.channel for one in theirs)
        if channel is not None and here >= channel:
            return f"{here} of this channel's run already: one of them must end first."
        return ""


def _spots(ones: list[tuple[Waiting, str]], accounts: Mapping[str, Account]) -> Iterator[tuple[str, Spot]]:
    known, work = {one.job: (one, model) for one, model in ones}, 0.0
    for ahead, job in enumerate(order(accounts, [one for one, _ in ones])):
        one, model = known[job]
        work += one.cost
        yield job, Spot(ahead, work, one.account.partition("/")[0], model)
