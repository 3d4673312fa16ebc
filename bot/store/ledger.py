"""What was used, read inside one transaction: what runs, waits and was charged, of a member or of all together.

Only asked for what some limit needs, and each question is answered once. Times are seconds since 1970, costs
device-seconds.
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
    """A member's are found by the member alone, and sorted by guild later: with both, SQLite walks the guild's."""
    if whose.startswith("member"):
        return [jobs.c.member == bindparam("member")]
    theirs = [jobs.c.guild == bindparam("guild")]
    return [*theirs, jobs.c.channel == bindparam("channel")] if whose == "channel" else theirs


@cache
def _counted(whose: Whose) -> Select[*tuple[Any, ...]]:
    """Built once, for each admission asks it: to build it takes longer than to run it."""
    asked = select(jobs.c.state, jobs.c.guild, func.count().label("jobs"))
    return asked.where(*_population(whose), jobs.c.state.in_(OPEN)).group_by(jobs.c.state, jobs.c.guild)


@cache
def _charged(whose: Whose) -> Select[*tuple[Any, ...]]:
    """As `_counted`."""
    asked = select(jobs.c.created.label("at"), jobs.c.charged, jobs.c.guild)
    return asked.where(*_population(whose), jobs.c.created > bindparam("since"), jobs.c.charged > 0)


class Ledger:
    """Made for one transaction and one member."""

    def __init__(self, connection: Connection, member: Member, now: float) -> None:
        self._connection, self._member, self._now = connection, member, now
        self.usage = cache(self._usage)
        self.spending = cache(self._spending)

    def rules(self) -> list[Rule]:
        """Those of the member's guild and those that hold everywhere."""
        return rules.applying(self._connection, self._member.guild)

    def preferences(self) -> dict[str, object]:
        """The member's, as they were written."""
        return members.preferences(self._connection, self._member.id)

    def gone(self, parent: str | None, contents: Sequence[str]) -> bool:
        """Whether a job would begin with what was just taken away: its parent's, or what none but deleted jobs made."""
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
        """What the statements below are told of the member."""
        return {"member": self._member.id, "guild": self._member.guild, "channel": self._member.channel, **others}

    def _counts(self, whose: Whose, guild: str) -> bool:
        return whose != "member here" or guild == self._member.guild

    def _usage(self, whose: Whose) -> Usage:
        """What runs and what waits now."""
        by: Counter[str] = Counter()
        for row in self._connection.execute(_counted(whose), self._told()):
            by[row.state] += int(row.jobs) * self._counts(whose, row.guild)
        return Usage(running=sum(by[state] for state in ACTIVE), queued=by["queued"])

    def _spending(self, whose: Whose, window: float) -> Spending:
        """What was charged in the last `window` seconds. Charges count from when the job was asked for."""
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
        """What jobs were charged whose rows are gone (`spent`); nothing where there are none."""
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
        """When the charge was made whose leaving, with all that are older, frees `excess`."""
        gone: Any = func.sum(charges.c.charged).over(order_by=charges.c.at)  # those of one moment count together
        oldest = select(charges.c.at, gone.label("gone")).subquery()
        asked = select(func.min(oldest.c.at)).where(oldest.c.gone >= excess)
        found = self._connection.execute(asked).scalar_one_or_none()
        return self._now if found is None else float(found)


def look(connection: Connection, member: Member, now: float, act: Callable[[Ledger], T]) -> T:
    """What `act` makes of the ledger: `await store.ask(look, member, now, act)`."""
    return act(Ledger(connection, member, now))
