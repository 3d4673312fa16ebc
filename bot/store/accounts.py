"""The accounts of the fair order in SQL: entry, charging, and the walk to the next job. `bot.fair` says why.

Every function works inside a transaction that its caller began.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, case, exists, func, or_, select, update

from bot.fair import ancestry, entry, parent, user
from bot.passing import Passing
from bot.rules.together import Together
from bot.states import ACTIVE
from bot.store.tables import accounts, jobs

PAGE = 32
MISSING = 0.0
ANY = Together()  # no caps


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
    found = connection.execute(select(accounts).where(accounts.c.path.in_(levels)).with_for_update())
    known = {row.path: row for row in found}
    for level in levels:
        above = known.get(parent(level))
        floor = above.floor if above is not None else MISSING
        one = known.get(level)
        if one is None:
            connection.execute(
                accounts.insert().values(
                    path=level, parent=parent(level), virtual=floor, floor=0.0,
                    weight=weights.get(user(level), 1.0) if level.count("/") == 1 else 1.0, queued=0, active=0,
                    since=now if level == path else None,
                )
            )  # fmt: skip
        elif one.queued == 0:
            come = {"virtual": entry(one.virtual, floor), "since": now if level == path else None}
            connection.execute(update(accounts).where(accounts.c.path == level).values(**come))


def shift(connection: Connection, path: str, *, queued: int = 0, active: int = 0) -> None:
    """Count a job in or out on every level."""
    if queued or active:
        connection.execute(
            update(accounts)
            .where(accounts.c.path.in_(ancestry(path)))
            .values(queued=accounts.c.queued + queued, active=accounts.c.active + active)
        )


def bill(connection: Connection, path: str, cost: float) -> None:
    """Advance the virtual time of every level by `cost` ÷ weight (a negative cost gives back)."""
    if cost:
        connection.execute(
            update(accounts)
            .where(accounts.c.path.in_(ancestry(path)))
            .values(virtual=accounts.c.virtual + cost / accounts.c.weight)
        )


def attend(connection: Connection, path: str, now: float) -> None:
    """A user has had a turn: the wait for the next one begins."""
    connection.execute(update(accounts).where(accounts.c.path == path).values(since=now))


def serve(connection: Connection, path: str) -> None:
    """Note on every level above that `path` is being served at its virtual time (before it is charged)."""
    levels = ancestry(path)
    below = accounts.alias("below")
    child = select(below.c.virtual).where(below.c.path.in_(levels), below.c.parent == accounts.c.path)
    served = child.scalar_subquery()
    floor = case((served > accounts.c.floor, served), else_=accounts.c.floor)
    connection.execute(update(accounts).where(accounts.c.path.in_(levels[:-1])).values(floor=floor))


def busy(connection: Connection, pool: str) -> int:
    """Rows of the pool's jobs that left the queue and are not over."""
    asked = select(func.coalesce(func.sum(jobs.c.rows), 0)).where(jobs.c.state.in_(ACTIVE), jobs.c.pool == pool)
    return int(connection.execute(asked).scalar_one())


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
    ranked = select(accounts.c.path, accounts.c.since.label("rank"))
    waits = ranked.where(accounts.c.queued > 0, accounts.c.since <= before, _some(wish))
    for account in _pages(connection, waits, accounts.c.since):
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


def _below(path: str) -> Select[*tuple[Any, ...]]:
    ranked = select(accounts.c.path, accounts.c.virtual.label("rank"))
    return ranked.where(accounts.c.parent == path, accounts.c.queued > 0)


def _children(connection: Connection, path: str) -> Iterator[str]:
    return _pages(connection, _below(path), accounts.c.virtual)


def _users(connection: Connection, guild: str, wish: Wish) -> Iterator[str]:
    """Those with a job for a model that is there: else a model without a worker would have each of them looked at."""
    waiting = _below(guild).where(_some(wish))
    return _pages(connection, waiting.where(accounts.c.active == 0) if wish.newcomers else waiting, accounts.c.virtual)


def _some(wish: Wish) -> ColumnElement[bool]:
    waits = (jobs.c.account == accounts.c.path, jobs.c.state == "queued", jobs.c.pool == wish.pool)
    return exists().where(*waits, jobs.c.model.in_([*wish.models, ""]))


def _pages(connection: Connection, asked: Select[*tuple[Any, ...]], rank: ColumnElement[Any]) -> Iterator[str]:
    """Paths by rank, a page at a time, so that a thousand guilds cost nothing when the first one serves."""
    size, ordered = 1, asked.order_by(rank, accounts.c.path)
    page: Sequence[Any] = connection.execute(ordered.limit(size)).all()
    while page:
        for row in page:
            yield row.path
        if len(page) < size:
            return
        last, size = page[-1], PAGE
        after = or_(rank > last.rank, and_(rank == last.rank, accounts.c.path > last.path))
        page = connection.execute(ordered.where(after).limit(size)).all()


def _first(connection: Connection, account: str, wish: Wish, full: Collection[str]) -> RowMapping | None:
    asked = select(jobs).where(
        jobs.c.account == account, jobs.c.state == "queued", jobs.c.model.in_([*wish.models, ""])
    )  # fmt: skip
    asked = asked.where(jobs.c.channel.not_in(full)) if full else asked
    row = connection.execute(asked.order_by(jobs.c.id).limit(1)).mappings().first()
    return row if row is not None and _may_run(connection, row, wish.running) else None


def _may_run(connection: Connection, row: RowMapping, running: int) -> bool:
    """True if its member has room for one more: here and everywhere, as their terms were when it was admitted."""
    here, everywhere = row["running_here"], row["running_everywhere"]
    if here is None and everywhere is None:
        everywhere = running
    mine = select(jobs.c.guild).where(jobs.c.member == row["member"], jobs.c.state.in_(ACTIVE))
    guilds = connection.execute(mine).scalars().all()
    within = here is None or guilds.count(row["guild"]) < here
    return within and (everywhere is None or len(guilds) < everywhere)
