"""The ledger: usage for quota checks. Counts the running, waiting and charged jobs of a member, guild or channel.

Works inside one transaction. It reads only what some limit needs, and each figure once. Times are seconds since 1970,
costs device-seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, Subquery, bindparam, func, select, union_all

from bot.limits import Charge, Spending, Usage, spending
from bot.rules import Rule
from bot.rules.terms import Whose
from bot.states import ACTIVE, OPEN
from bot.store import members, rules
from bot.store.heirs import MADE
from bot.store.spent import veiled
from bot.store.tables import jobs, pictures
from bot.store.traces import spent
from bot.views import Member

T = TypeVar("T")


def _population(whose: Whose) -> list[ColumnElement[bool]]:
    """Filter a member's jobs by member only, and by guild later in Python: with both, SQLite scans the guild's jobs."""
    if whose.startswith("member"):
        return [jobs.c.member == bindparam("member")]
    theirs = [jobs.c.guild == bindparam("guild")]
    return [*theirs, jobs.c.channel == bindparam("channel")] if whose == "channel" else theirs


@cache
def _counted(whose: Whose) -> Select[*tuple[Any, ...]]:
    """Count open jobs by state and guild. Cached: each admission runs it, and building takes longer than running."""
    asked = select(jobs.c.state, jobs.c.guild, func.count().label("jobs"))
    return asked.where(*_population(whose), jobs.c.state.in_(OPEN)).group_by(jobs.c.state, jobs.c.guild)


@cache
def _charged(whose: Whose) -> Select[*tuple[Any, ...]]:
    """Select the charges since a time. Cached like `_counted`."""
    asked = select(jobs.c.created.label("at"), jobs.c.charged, jobs.c.guild)
    return asked.where(*_population(whose), jobs.c.created > bindparam("since"), jobs.c.charged > 0)


class Ledger:
    """Usage as one transaction sees it for one member."""

    def __init__(self, connection: Connection, member: Member, now: float) -> None:
        self._connection, self._member, self._now = connection, member, now
        self.usage = cache(self._usage)
        self.spending = cache(self._spending)

    def rules(self) -> list[Rule]:
        """Return the rules of the member's guild, and those that hold everywhere."""
        return rules.applying(self._connection, self._member.guild)

    def preferences(self) -> dict[str, object]:
        """Return the member's preferences as stored."""
        return members.preferences(self._connection, self._member.id)

    def gone(self, parent: str | None, contents: Sequence[str]) -> bool:
        """Return whether a job's input was deleted: its parent is, or only deleted jobs made the contents."""
        asked = select(jobs.c.deleted).where(jobs.c.id == parent)
        if self._connection.execute(asked).scalar_one_or_none() is not None:
            return True
        made = select(pictures.c.sha256, jobs.c.deleted).join(jobs, jobs.c.id == pictures.c.job)
        made = made.where(pictures.c.sha256.in_(contents), pictures.c.kind.in_(MADE))
        alive: dict[str, bool] = {}
        for row in self._connection.execute(made):
            alive[row.sha256] = alive.get(row.sha256, False) or row.deleted is None
        return not all(alive.values())

    def _told(self, **others: object) -> dict[str, object]:
        """Return the bound parameters for the statements of this module."""
        return {"member": self._member.id, "guild": self._member.guild, "channel": self._member.channel, **others}

    def _counts(self, whose: Whose, guild: str) -> bool:
        return whose != "member here" or guild == self._member.guild

    def _usage(self, whose: Whose) -> Usage:
        """Count active and waiting jobs."""
        by: Counter[str] = Counter()
        for row in self._connection.execute(_counted(whose), self._told()):
            by[row.state] += int(row.jobs) * self._counts(whose, row.guild)
        return Usage(running=sum(by[state] for state in ACTIVE), queued=by["queued"])

    def _spending(self, whose: Whose, window: float) -> Spending:
        """Sum the charges of the last `window` seconds. A charge counts from the creation of its job."""
        lasting, told = self._lasting(whose, window), self._told(since=self._now - window)
        if whose.startswith("member"):
            rows = [row for row in self._connection.execute(_charged(whose), told) if self._counts(whose, row.guild)]
            charges = [Charge(row.at, row.charged) for row in rows]
            charges += [Charge(row.at, row.charged) for asked in lasting for row in self._connection.execute(asked)]
            return spending(charges, self._now, window)
        recent = _charged(whose).params(told).with_only_columns(jobs.c.created.label("at"), jobs.c.charged)
        charges = union_all(recent, *lasting).subquery()
        total = select(func.coalesce(func.sum(charges.c.charged), 0.0))
        used = float(self._connection.execute(total).scalar_one())
        return Spending(used, window, lambda excess: self._leaves(charges, excess) + window)

    def _lasting(self, whose: Whose, window: float) -> list[Select[*tuple[Any, ...]]]:
        """Select the archived charges of removed jobs (`spent`); an empty list where there are none."""
        hidden = veiled(self._connection)
        if hidden is None:
            return []
        me, asked = self._member, select(spent.c.at, spent.c.charged).where(spent.c.at > self._now - window)
        if whose.startswith("member"):
            mine = asked.where(spent.c.member == hidden("member", me.id))
            return [mine if whose != "member here" else mine.where(spent.c.guild == hidden("guild", me.guild))]
        theirs = asked.where(spent.c.guild == hidden("guild", me.guild))
        return [theirs.where(spent.c.channel == hidden("channel", me.channel)) if whose == "channel" else theirs]

    def _leaves(self, charges: Subquery, excess: float) -> float:
        """Return the time of the charge whose expiry, with all older ones, frees `excess`."""
        gone: Any = func.sum(charges.c.charged).over(order_by=charges.c.at)  # charges of the same moment count together
        oldest = select(charges.c.at, gone.label("gone")).subquery()
        asked = select(func.min(oldest.c.at)).where(oldest.c.gone >= excess)
        found = self._connection.execute(asked).scalar_one_or_none()
        return self._now if found is None else float(found)


def look(connection: Connection, member: Member, now: float, act: Callable[[Ledger], T]) -> T:
    """Run `act` on a ledger: `await store.ask(look, member, now, act)`."""
    return act(Ledger(connection, member, now))
