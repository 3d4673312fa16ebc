"""The accounts of the fair order in SQL: entry, charging and the search for the next job (`bot.fair` explains it).

Every function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from sqlalchemy import (
    Connection,
    Integer,
    RowMapping,
    Select,
    Update,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    update,
)  # fmt: skip

from bot.fair import ancestry, entry, parent, user
from bot.passing import Passing
from bot.rules.together import Together
from bot.states import ACTIVE
from bot.store.tables import accounts, jobs

PAGE = 32
MISSING = 0.0
ANY = Together()  # no caps
# Each admission and each dispatch runs these. They are built once: building takes longer than SQLite takes to run them.
_LEVELS = accounts.c.path.in_(bindparam("levels", expanding=True))
_KNOWN = select(accounts).where(_LEVELS).with_for_update()
_NEW = accounts.insert()
_COME = (
    update(accounts)
    .where(accounts.c.path == bindparam("level"))
    .values(virtual=bindparam("come"), since=bindparam("from"))
)
_SHIFT = update(accounts).where(_LEVELS)
_SHIFT = _SHIFT.values(queued=accounts.c.queued + bindparam("queue"), active=accounts.c.active + bindparam("act"))
_BILL = update(accounts).where(_LEVELS).values(virtual=accounts.c.virtual + bindparam("cost") / accounts.c.weight)
_BUSY = select(func.coalesce(func.sum(jobs.c.rows), 0))
_BUSY = _BUSY.where(jobs.c.state.in_(ACTIVE), jobs.c.pool == bindparam("pool"))
_RUNNING = select(jobs.c.guild).where(jobs.c.member == bindparam("member"), jobs.c.state.in_(ACTIVE))
Who = Literal["children", "users", "newcomers", "overdue"]  # which accounts a search visits


@dataclass(frozen=True)
class Wish:
    """What a pool has room for. `models`: those that live workers offer. `running`: the most jobs that a member may run
    over all guilds, for jobs without a limit of their own. `together`: caps on all members of a guild or channel.

    `newcomers`: consider only members with no active job.
    """

    pool: str
    models: Collection[str]
    running: int
    newcomers: bool = False
    together: Together = ANY
    spare: int = 0  # rows of active jobs that are free, since the jobs are paused
    warm: Collection[str] | None = None  # those of `models` that workers with room have in memory; None: irrelevant
    passing: Passing = field(default_factory=Passing)


def enter(connection: Connection, path: str, weights: Mapping[str, float], now: float) -> None:
    """Create the accounts of a new job's member, or advance idle ones to the virtual time served now.

    The member's wait for a turn begins. `weights`: tier → weight; other new accounts have the weight 1.
    """
    levels = ancestry(path)
    known = {row.path: row for row in connection.execute(_KNOWN, {"levels": levels})}
    for level in levels:
        above = known.get(parent(level))
        floor = above.floor if above is not None else MISSING
        one = known.get(level)
        if one is None:
            made = {
                "path": level, "parent": parent(level), "virtual": floor, "floor": 0.0, "queued": 0, "active": 0,
                "weight": weights.get(user(level), 1.0) if level.count("/") == 1 else 1.0,
                "since": now if level == path else None,
            }  # fmt: skip
            connection.execute(_NEW, made)
        elif one.queued == 0:
            come = {"level": level, "come": entry(one.virtual, floor), "from": now if level == path else None}
            connection.execute(_COME, come)


def shift(connection: Connection, path: str, *, queued: int = 0, active: int = 0) -> None:
    """Add to the job counts of every level."""
    if queued or active:
        connection.execute(_SHIFT, {"levels": ancestry(path), "queue": queued, "act": active})


def bill(connection: Connection, path: str, cost: float) -> None:
    """Advance the virtual time of every level by `cost` ÷ weight. A negative cost refunds."""
    if cost:
        connection.execute(_BILL, {"levels": ancestry(path), "cost": cost})


def attend(connection: Connection, path: str, now: float) -> None:
    """Restart a member's wait for a turn, since they have just had one."""
    connection.execute(update(accounts).where(accounts.c.path == path).values(since=now))


def serve(connection: Connection, path: str) -> None:
    """Raise the floor of every level above to the virtual time of `path`. Call it before the charge."""
    levels = ancestry(path)
    connection.execute(_serving(), {"levels": levels, "above": levels[:-1]})


@cache
def _serving() -> Update:
    below = accounts.alias("below")
    mine = below.c.path.in_(bindparam("levels", expanding=True))
    served = select(below.c.virtual).where(mine, below.c.parent == accounts.c.path).scalar_subquery()
    floor = case((served > accounts.c.floor, served), else_=accounts.c.floor)
    return update(accounts).where(accounts.c.path.in_(bindparam("above", expanding=True))).values(floor=floor)


def busy(connection: Connection, pool: str) -> int:
    """Return the rows of the pool's sent and running jobs."""
    return int(connection.execute(_BUSY, {"pool": pool}).scalar_one())


def choose(connection: Connection, wish: Wish) -> RowMapping | None:
    """Return the next job's row in fair order that the wish allows, or None. Reads no more accounts than needed."""
    for tier in _children(connection, wish.pool):
        for guild in _children(connection, tier):
            full = _full(connection, user(guild), wish.together)
            if full is None:
                continue
            for account in _users(connection, guild, wish):
                row = _first(connection, account, wish, full)
                if row is not None:
                    return row
    return None


def longest(connection: Connection, wish: Wish, before: float) -> RowMapping | None:
    """Return the first allowed job of the member who has waited longest for a turn, since `before` or earlier."""
    shut: dict[str, list[str] | None] = {}
    begins = f"{wish.pool}/"
    theirs = {"before": before, "begins": begins, "length": len(begins)}
    for account in _pages(connection, "overdue", theirs | _asked(wish)):
        guild = parent(account)
        if guild not in shut:
            shut[guild] = _full(connection, user(guild), wish.together)
        full = shut[guild]
        row = None if full is None else _first(connection, account, wish, full)
        if row is not None:
            return row
    return None


def _full(connection: Connection, guild: str, together: Together) -> list[str] | None:
    """Return the guild's channels that are at their cap; None if the whole guild is."""
    most, channels = together.of(guild), together.channels_of(guild)
    if most is None and not channels:
        return []
    running = select(jobs.c.channel).where(jobs.c.guild == guild, jobs.c.state.in_(ACTIVE))
    active = connection.execute(running).scalars().all()
    if most is not None and len(active) >= most:
        return None
    return [channel for channel, limit in channels.items() if active.count(channel) >= limit]


def _children(connection: Connection, path: str) -> Iterator[str]:
    return _pages(connection, "children", {"above": path})


def _users(connection: Connection, guild: str, wish: Wish) -> Iterator[str]:
    """Yield only members with a job for an offered model: else a model without a worker would cost a visit of each."""
    return _pages(connection, "newcomers" if wish.newcomers else "users", {"above": guild} | _asked(wish))


def _asked(wish: Wish) -> dict[str, object]:
    return {"models": [*wish.models, ""]}


def _pages(connection: Connection, who: Who, told: Mapping[str, object]) -> Iterator[str]:
    """Yield paths by rank, a page at a time: a thousand guilds cost nothing when the first one has a job."""
    size = 1
    page: Sequence[Any] = connection.execute(_page(who, later=False), {**told, "size": size}).all()
    while page:
        for row in page:
            yield row.path
        if len(page) < size:
            return
        last, size = page[-1], PAGE
        after = {"last": last.rank, "last_path": last.path}
        page = connection.execute(_page(who, later=True), {**told, **after, "size": size}).all()


@cache
def _page(who: Who, *, later: bool) -> Select[*tuple[Any, ...]]:
    """Build the query of a page. `later`: only accounts after the last one of the previous page.

    A path begins with its pool, so the query does not filter jobs by pool: SQLite would scan all jobs of the pool.
    """
    rank = accounts.c.since if who == "overdue" else accounts.c.virtual
    asked = select(accounts.c.path, rank.label("rank")).where(accounts.c.queued > 0)
    if who == "overdue":
        asked = asked.where(rank <= bindparam("before"))
        asked = asked.where(func.substr(accounts.c.path, 1, bindparam("length", type_=Integer)) == bindparam("begins"))
    else:
        asked = asked.where(accounts.c.parent == bindparam("above"))
    if who != "children":
        waits = (jobs.c.account == accounts.c.path, jobs.c.state == "queued")
        asked = asked.where(exists().where(*waits, jobs.c.model.in_(bindparam("models", expanding=True))))
    if who == "newcomers":
        asked = asked.where(accounts.c.active == 0)
    if later:
        same = and_(rank == bindparam("last"), accounts.c.path > bindparam("last_path"))
        asked = asked.where(or_(rank > bindparam("last"), same))
    return asked.order_by(rank, accounts.c.path).limit(bindparam("size", type_=Integer))


def _first(connection: Connection, account: str, wish: Wish, full: Collection[str]) -> RowMapping | None:
    told = {"account": account, "models": [*wish.models, ""]} | ({"full": list(full)} if full else {})
    row = connection.execute(_oldest(bool(full)), told).mappings().first()
    return row if row is not None and _may_run(connection, row, wish.running) else None


@cache
def _oldest(full: bool) -> Select[*tuple[Any, ...]]:
    asked = select(jobs).where(jobs.c.account == bindparam("account"), jobs.c.state == "queued")
    asked = asked.where(jobs.c.model.in_(bindparam("models", expanding=True)))
    asked = asked.where(jobs.c.channel.not_in(bindparam("full", expanding=True))) if full else asked
    return asked.order_by(jobs.c.id).limit(1)


def _may_run(connection: Connection, row: RowMapping, running: int) -> bool:
    """Return True if the member may run one more job, here and in all guilds, by the limits at its admission."""
    here, everywhere = row["running_here"], row["running_everywhere"]
    if here is None and everywhere is None:
        everywhere = running
    guilds = connection.execute(_RUNNING, {"member": row["member"]}).scalars().all()
    within = here is None or guilds.count(row["guild"]) < here
    return within and (everywhere is None or len(guilds) < everywhere)
