"""The accounts of the fair order in SQL: entry, charging, and the walk to the next job. `bot.fair` says why.

Every function works inside a transaction that its caller began.
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
# What each admission and each send asks is built once: to build a statement takes longer than SQLite takes to run it.
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
Who = Literal["children", "users", "newcomers", "overdue"]  # which accounts are walked


@dataclass(frozen=True)
class Wish:
    """What a pool has room for. `models`: those that live workers have ready; `running`: cap a member, over all guilds,
    whose job says none of its own; `together`: caps on all members of a guild or channel.

    `newcomers` only looks at users of whom nothing is active.
    """

    pool: str
    models: Collection[str]
    running: int
    newcomers: bool = False
    together: Together = ANY
    spare: int = 0  # rows of what is active that are free all the same
    warm: Collection[str] | None = None  # of `models`, those in memory where there is room; None: no matter
    passing: Passing = field(default_factory=Passing)


def enter(connection: Connection, path: str, weights: Mapping[str, float], now: float) -> None:
    """Make the accounts of a new job's user, or bring idle ones to the virtual time being served now.

    The user's wait for a turn begins.

    `weights`: tier → weight. A new account has the weight 1, but for tiers that are named there.
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
    """Count a job in or out on every level."""
    if queued or active:
        connection.execute(_SHIFT, {"levels": ancestry(path), "queue": queued, "act": active})


def bill(connection: Connection, path: str, cost: float) -> None:
    """Advance the virtual time of every level by `cost` ÷ weight (a negative cost gives back)."""
    if cost:
        connection.execute(_BILL, {"levels": ancestry(path), "cost": cost})


def attend(connection: Connection, path: str, now: float) -> None:
    """A user has had a turn: the wait for the next one begins."""
    connection.execute(update(accounts).where(accounts.c.path == path).values(since=now))


def serve(connection: Connection, path: str) -> None:
    """Note on every level above that `path` is being served at its virtual time (before it is charged)."""
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
    """Rows of the pool's jobs that left the queue and are not over."""
    return int(connection.execute(_BUSY, {"pool": pool}).scalar_one())


def choose(connection: Connection, wish: Wish) -> RowMapping | None:
    """The next job's row in fair order that the wish allows, or None. Never reads more accounts than it must."""
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
    """The first job that the wish allows, of whoever has waited longest for a turn, and since `before`; or None."""
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
    """The guild's channels in which no more may run now; None if none may in the whole guild."""
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
    """Those with a job for a model that is there: else a model without a worker would have each of them looked at."""
    return _pages(connection, "newcomers" if wish.newcomers else "users", {"above": guild} | _asked(wish))


def _asked(wish: Wish) -> dict[str, object]:
    return {"models": [*wish.models, ""]}


def _pages(connection: Connection, who: Who, told: Mapping[str, object]) -> Iterator[str]:
    """Paths by rank, a page at a time, so that a thousand guilds cost nothing when the first one serves."""
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
    """`later`: those after the last one of the page before.

    A path begins with its pool, so nothing is asked of a job's: for that SQLite would walk all jobs of the pool.
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
    """True if its member has room for one more: here and everywhere, as their terms were when it was admitted."""
    here, everywhere = row["running_here"], row["running_everywhere"]
    if here is None and everywhere is None:
        everywhere = running
    guilds = connection.execute(_RUNNING, {"member": row["member"]}).scalars().all()
    within = here is None or guilds.count(row["guild"]) < here
    return within and (everywhere is None or len(guilds) < everywhere)
