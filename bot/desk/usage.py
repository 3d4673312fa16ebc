"""Quota report: every limit that is counted for a member, how much of it is used, and when some of it frees.

Times are seconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bot.limits import DAY, MONTH
from bot.rules import SETTINGS, Cap, Rule, Terms
from bot.rules.telling import shown
from bot.rules.terms import Whose
from bot.sentences import duration

if TYPE_CHECKING:
    from bot.store.ledger import Ledger

TITLES = {
    "running": "running", "queued": "waiting", "cost_day": "device time in 24 hours",
    "cost_month": "device time in 30 days",
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One limit: `used` of `limit` jobs or device-seconds. `frees`: when some of it will, None if unknown.

    `whose`: whose use is counted; `rule`: which rule set it, None for the default.
    """

    setting: str
    limit: int
    used: float
    whose: Whose
    rule: Rule | None = None
    frees: float | None = None

    @property
    def share(self) -> str:
        """The use as text: "2 of 3", "12 min of 30 min"."""
        if SETTINGS[self.setting].kind == "cost":
            used = duration(self.used) if self.used > 0 else "0 s"
            return f"{used} of {shown(self.setting, self.limit)}"
        return f"{self.used:.0f} of {self.limit}"

    @property
    def taken(self) -> float:
        """The used share of the limit; 1 if nothing is allowed."""
        return self.used / self.limit if self.limit else 1.0

    def sentence(self, now: float) -> str:
        """Return a sentence: "Device time in 24 hours: 12 min of 30 min; some frees in about 3 h." """
        title = TITLES[self.setting.removeprefix("together_")]
        place = {"guild": "all of this server, ", "channel": "all of this channel, "}.get(self.whose, "")
        frees = f"; some frees in about {duration(self.frees - now)}" if self.frees is not None and self.used else ""
        said = f"{place}{title}: {self.share}{frees}."
        return said[:1].upper() + said[1:]


@dataclass(frozen=True)
class Allowance:
    """A member's effective rules, and a line for each limit that is counted."""

    terms: Terms
    lines: tuple[Line, ...]


def allowance(terms: Terms, ledger: Ledger) -> Allowance:
    """Return the use of each limit in `terms`."""
    return Allowance(terms, tuple(line(cap, ledger) for cap in terms.caps))


def line(cap: Cap, ledger: Ledger) -> Line:
    """Return one limit and its use."""
    name = cap.setting.removeprefix("together_")
    if name in ("running", "queued"):
        usage = ledger.usage(cap.whose)
        return Line(cap.setting, cap.limit, getattr(usage, name), cap.whose, cap.rule)
    spent = ledger.spending(cap.whose, DAY if name == "cost_day" else MONTH)
    frees = spent.leaves(0.0) if spent.spent > 0 else None
    return Line(cap.setting, cap.limit, spent.spent, cap.whose, cap.rule, frees)
