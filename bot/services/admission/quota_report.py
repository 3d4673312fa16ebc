"""Quota report: every limit that counts a member's usage, how much of it is used, and when some of it becomes free.

Times are seconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bot.domain.texts import format_duration
from bot.policy.limits import DAY_SECONDS, MONTH_SECONDS
from bot.policy.rules import SETTINGS, EffectiveRules, Rule, UsageLimit
from bot.policy.rules.effective_rules import UsageScope
from bot.policy.rules.explanations import format_for_sentence

if TYPE_CHECKING:
    from bot.store.fairness.ledger import Ledger

LIMIT_TITLES = {
    "running": "running",
    "queued": "waiting",
    "cost_day": "device time in 24 hours",
    "cost_month": "device time in 30 days",
    "relaxed_day": "relaxed device time in 24 hours",
}


@dataclass(frozen=True)
class QuotaLine:
    """One limit: `used` of `limit` jobs or device-seconds. `frees_at`: when some of it becomes free, None if unknown.

    `counted_for`: whose usage counts; `rule`: which rule set it, None for the default.
    """

    setting: str
    limit: int
    used: float
    counted_for: UsageScope
    rule: Rule | None = None
    frees_at: float | None = None

    @property
    def usage_text(self) -> str:
        """The usage as text: "2 of 3", "12 min of 30 min"."""
        if SETTINGS[self.setting].kind == "cost":
            used_text = format_duration(self.used) if self.used > 0 else "0 s"
            return f"{used_text} of {format_for_sentence(self.setting, self.limit)}"
        return f"{self.used:.0f} of {self.limit}"

    @property
    def used_share(self) -> float:
        """The used share of the limit; 1 if nothing is allowed."""
        return self.used / self.limit if self.limit else 1.0

    def sentence(self, now: float) -> str:
        """Return a sentence: "Device time in 24 hours: 12 min of 30 min; some frees in about 3 h." """
        title = LIMIT_TITLES[self.setting.removeprefix("together_")]
        scope_part = {"guild": "all of this server, ", "channel": "all of this channel, "}.get(self.counted_for, "")
        frees_part = (
            f"; some frees in about {format_duration(self.frees_at - now)}"
            if self.frees_at is not None and self.used
            else ""
        )
        sentence_text = f"{scope_part}{title}: {self.usage_text}{frees_part}."
        return sentence_text[:1].upper() + sentence_text[1:]


@dataclass(frozen=True)
class QuotaReport:
    """A member's effective rules, and a line for each limit that is counted."""

    effective_rules: EffectiveRules
    lines: tuple[QuotaLine, ...]


def report_quotas(rules: EffectiveRules, ledger: Ledger) -> QuotaReport:
    """Return the usage of each limit in `rules`."""
    return QuotaReport(rules, tuple(quota_line(cap, ledger) for cap in rules.usage_limits))


def quota_line(cap: UsageLimit, ledger: Ledger) -> QuotaLine:
    """Return one limit and its usage."""
    name = cap.setting.removeprefix("together_")
    if name in ("running", "queued"):
        usage = ledger.get_usage(cap.usage_scope)
        return QuotaLine(cap.setting, cap.limit, getattr(usage, name), cap.usage_scope, cap.rule)
    if name == "relaxed_day":
        spending = ledger.get_relaxed_spending(cap.usage_scope, DAY_SECONDS)
    else:
        spending = ledger.get_spending(cap.usage_scope, DAY_SECONDS if name == "cost_day" else MONTH_SECONDS)
    frees_at = spending.frees_at(0.0) if spending.total_cost > 0 else None
    return QuotaLine(cap.setting, cap.limit, spending.total_cost, cap.usage_scope, cap.rule, frees_at)
