"""The accounts of the fair order in SQL: entry, charging, and the walk to the next job. `bot.fair` says why.

Every function works inside a transaction that its caller began.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, and_, case, func, or_, select, update

from bot.fair import ancestry, entry, parent, user
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


def enter(connection: Connection, path: str, weights: Mapping[str, float]) -> None:
    """Make the accounts of a new job's user, or bring idle ones to the virtual time being served now.

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
                )
            )  # fmt: skip
        elif one.queued == 0 and one.virtual < floor:
            connection.execute(
                update(accounts).where(accounts.c.path == level).values(virtual=entry(one.virtual, floor))
            )


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
            for account in _children(connection, guild, newcomers=wish.newcomers):
                row = _first(connection, account, wish, full)
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


def _children(connection: Connection, path: str, *, newcomers: bool = False) -> Iterator[str]:
    waiting = select(accounts.c.path, accounts.c.virtual).where(accounts.c.parent == path, accounts.c.queued > 0)
    return _pages(connection, waiting.where(accounts.c.active == 0) if newcomers else waiting)


def _pages(connection: Connection, asked: Select[*tuple[Any, ...]]) -> Iterator[str]:
    """Paths by virtual time, a page at a time, so that a thousand guilds cost nothing when the first one serves."""
    size, ordered = 1, asked.order_by(accounts.c.virtual, accounts.c.path)
    page: Sequence[Any] = connection.execute(ordered.limit(size)).all()
    while page:
        for row in page:
            yield row.path
        if len(page) < size:
            return
        last, size = page[-1], PAGE
        after = or_(
            accounts.c.virtual > last.virtual,
            and_(accounts.c.virtual == last.virtual, accounts.c.path > last.path),
        )
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
