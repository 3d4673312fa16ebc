"""The part of the quota check that is about device time: each limit, for fast jobs, relaxed ones, and other work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from bot.domain.errors import UserError
from bot.policy.limits import DAY_SECONDS, MONTH_SECONDS, Spending, check_cost, check_cost_left
from bot.policy.rules import EffectiveRules, UsageLimit
from bot.policy.rules.explanations import set_by_sentence
from bot.store.fairness.ledger import Ledger

RELAXED_HINT = "Relaxed jobs (--relax, or /relax) do not count against it."
SHARED_OWNERS = {"channel": "This channel's", "guild": "This server's"}
COST_WINDOWS = {"cost_day": DAY_SECONDS, "cost_month": MONTH_SECONDS}
STEPS_ADVICE = "Fewer --steps cost less."
MODEL_ADVICE = "A smaller model may cost less."


def check_device_time(cost: float, rules: EffectiveRules, ledger: Ledger, now: float) -> None:
    """Check that a member may spend `cost` device-seconds on work that is no job. Raises `UserError` (429)."""
    raise_latest_refusal(cost_checks(cost, rules, ledger, now, advice=MODEL_ADVICE))


def raise_latest_refusal(checks: Iterator[Callable[[], None]]) -> None:
    """Run all checks. If several refuse, raise the refusal with the latest `retry_at`: by then all others allow it."""
    refusals = [refusal for check in checks if (refusal := _catch_refusal(check)) is not None]
    if refusals:
        raise max(refusals, key=lambda refusal: (refusal.retry_at is None, refusal.retry_at or 0.0))


def _catch_refusal(check: Callable[[], None]) -> UserError | None:
    try:
        check()
    except UserError as refusal:
        return refusal
    return None


def cost_checks(
    cost: float | None, rules: EffectiveRules, ledger: Ledger, now: float, *, advice: str = STEPS_ADVICE
) -> Iterator[Callable[[], None]]:
    """Yield the check of each limit on device time. `cost`: device-seconds; None: unknown, but above 0."""
    hint = RELAXED_HINT if rules.allows("speeds", "relaxed") else ""
    for setting, window in COST_WINDOWS.items():
        for usage_limit in (*rules.limits_of(setting), *rules.limits_of(f"together_{setting}")):
            spending = ledger.get_spending(usage_limit.usage_scope, window)
            owner = SHARED_OWNERS.get(usage_limit.usage_scope, "Your")
            yield _cost_check(cost, usage_limit, spending, now, owner, hint, advice)


def relaxed_checks(
    cost: float | None, rules: EffectiveRules, ledger: Ledger, now: float, *, advice: str = STEPS_ADVICE
) -> Iterator[Callable[[], None]]:
    """Yield the check of each limit on the device time of relaxed jobs."""
    for usage_limit in rules.limits_of("relaxed_day"):
        spending = ledger.get_relaxed_spending(usage_limit.usage_scope, DAY_SECONDS)
        yield _cost_check(cost, usage_limit, spending, now, "Your relaxed", "", advice)


def _cost_check(
    cost: float | None, usage_limit: UsageLimit, spending: Spending, now: float, owner: str, hint: str, advice: str
) -> Callable[[], None]:
    set_by = f"{set_by_sentence(usage_limit.rule)} {hint}".strip()
    if cost is None:
        return partial(check_cost_left, usage_limit.limit, spending, now, owner=owner, set_by=set_by)
    return partial(check_cost, usage_limit.limit, spending, cost, now, owner=owner, set_by=set_by, advice=advice)
