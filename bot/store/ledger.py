"""What was used, read inside one transaction: what runs, waits and was charged, of a member or of all together.

Only asked for what some limit needs, and each question is answered once. Times are seconds since 1970, costs
device-seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, func, select

from bot.limits import Charge, Spending, Usage, spending
from bot.rules import Rule
from bot.rules.terms import Whose
from bot.states import ACTIVE, OPEN
from bot.store import rules
from bot.store.tables import jobs
from bot.views import Member

T = TypeVar("T")


class Ledger:
    """Made for one transaction and one member."""

    def __init__(self, connection: Connection, member: Member, now: float) -> None:
        self._connection, self._member, self._now = connection, member, now
        self.usage = cache(self._usage)
        self.spending = cache(self._spending)

    def rules(self) -> list[Rule]:
        """Those of the member's guild and those that hold everywhere."""
        return rules.applying(self._connection, self._member.guild)

    def _population(self, whose: Whose) -> list[ColumnElement[bool]]:
        """A member's are found by the member alone, and sorted by guild here: with both, SQLite walks the guild's."""
        if whose.startswith("member"):
            return [jobs.c.member == self._member.id]
        theirs = [jobs.c.guild == self._member.guild]
        return [*theirs, jobs.c.channel == self._member.channel] if whose == "channel" else theirs

    def _counts(self, whose: Whose, guild: str) -> bool:
        return whose != "member here" or guild == self._member.guild

    def _usage(self, whose: Whose) -> Usage:
        """What runs and what waits now."""
        counted = select(jobs.c.state, jobs.c.guild, func.count().label("jobs")).where(
            *self._population(whose), jobs.c.state.in_(OPEN)
        )
        by: Counter[str] = Counter()
        for row in self._connection.execute(counted.group_by(jobs.c.state, jobs.c.guild)):
            by[row.state] += int(row.jobs) * self._counts(whose, row.guild)
        return Usage(running=sum(by[state] for state in ACTIVE), queued=by["queued"])

    def _spending(self, whose: Whose, window: float) -> Spending:
        """What was charged in the last `window` seconds. Charges count from when the job was asked for."""
        recent = [*self._population(whose), jobs.c.created > self._now - window, jobs.c.charged > 0]
        if whose.startswith("member"):
            asked = select(jobs.c.created, jobs.c.charged, jobs.c.guild).where(*recent)
            rows = [row for row in self._connection.execute(asked) if self._counts(whose, row.guild)]
            return spending([Charge(row.created, row.charged) for row in rows], self._now, window)
        total = select(func.coalesce(func.sum(jobs.c.charged), 0.0)).where(*recent)
        spent = float(self._connection.execute(total).scalar_one())
        return Spending(spent, window, lambda excess: self._leaves(recent, excess) + window)

    def _leaves(self, recent: list[ColumnElement[bool]], excess: float) -> float:
        """When the charge was made whose leaving, with all that are older, frees `excess`."""
        gone: Any = func.sum(jobs.c.charged).over(order_by=(jobs.c.created, jobs.c.id))
        oldest = select(jobs.c.created, gone.label("gone")).where(*recent).subquery()
        asked = select(func.min(oldest.c.created)).where(oldest.c.gone >= excess)
        found = self._connection.execute(asked).scalar_one_or_none()
        return self._now if found is None else float(found)


def look(connection: Connection, member: Member, now: float, act: Callable[[Ledger], T]) -> T:
    """What `act` makes of the ledger: `await store.ask(look, member, now, act)`."""
    return act(Ledger(connection, member, now))
