"""Quota: decides whether a request is admitted under the member's effective rules, and reports their usage.

The check runs inside the transaction that writes the jobs, so that nothing changes between check and write. Every
refusal names the limit, the usage, when some of it becomes free (if known), and who set the limit. Times are seconds
since 1970.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from bot.domain.errors import UserError
from bot.domain.texts import format_duration, shorten
from bot.jobs.preferences import Preference, known_preferences
from bot.policy.limits import (
    DAY_SECONDS,
    MONTH_SECONDS,
    Spending,
    Usage,
    check_cost,
    check_cost_left,
    check_job_count,
    check_shared_queue,
)
from bot.policy.rules import EVERYWHERE, SETTINGS, EffectiveRules, Rule, UsageLimit
from bot.policy.rules.catalogue import UsageScope
from bot.policy.rules.explanations import format_for_sentence, set_by_sentence
from bot.store import TIER_WEIGHTS, NewJob
from bot.store.fairness.ledger import Ledger
from bot.store.jobs.records import RELAXED_TIER
from engine.contract import PIPELINE_SAMPLERS, Recipe, count_evaluations, count_requested_evaluations, list_final_images

RELAXED_ONLY = "Only relaxed jobs are allowed here; they wait longer and have a limit of their own."
NO_INTERPOLATION = (
    "A walk is drawn up to four pictures at a time, and at most {} a job are allowed here: none can be made."
)
FORBIDDEN_SENTENCES = {
    "commands": "You may not use {} here",
    "models": "The model {} is not allowed here",
    "samplers": "The sampler {} is not allowed here",
    "controls": "The control {} is not allowed here",
    "references": "Reference pictures by {} are not allowed here",
    "speeds": "The {} speed is not allowed here",
}
RELAXED_HINT = "Relaxed jobs (--relax, or /relax) do not count against it."
SHARED_OWNERS = {"channel": "This channel's", "guild": "This server's"}
COST_WINDOWS = {"cost_day": DAY_SECONDS, "cost_month": MONTH_SECONDS}
COST_SETTINGS = ("cost_day", "together_cost_day", "cost_month", "together_cost_month")
STEPS_ADVICE = "Fewer --steps cost less."
MODEL_ADVICE = "A smaller model may cost less."


@dataclass(frozen=True)
class QueueState:
    """The time of the check, and when the first of the member's jobs and of all jobs end; None if unknown."""

    now: float
    member_frees_at: float | None = None
    any_frees_at: float | None = None
    has_workers: bool = True


def apply_rules(
    new_jobs: Sequence[NewJob], rules: EffectiveRules, ledger: Ledger, queue_state: QueueState, *, relaxed: bool = False
) -> list[NewJob]:
    """Return the jobs as they may be written: with tier, privacy, picture check and running limits. Raises `UserError`.

    `relaxed`: the member asked for that speed in this request, not only in their preferences.
    """
    for new_job in new_jobs:
        check_task(rules, new_job)
    preference = known_preferences(ledger.load_preferences())
    tier, tier_notes = _choose_tier(rules, preference, relaxed)
    is_private, privacy_notes = _choose_privacy(rules, preference)
    cost = sum(new_job.cost for new_job in new_jobs)
    _check_usage(len(new_jobs), cost, rules, ledger, queue_state, is_relaxed=tier == RELAXED_TIER)
    limit_here = _running_limit(rules, "member here")
    limit_everywhere = _running_limit(rules, "member everywhere")
    return [
        replace(
            new_job,
            member=replace(new_job.member, tier=tier),
            private=is_private,
            check=new_job.check or rules.check,
            weight=TIER_WEIGHTS.get(tier, 1.0),
            notes=(*new_job.notes, *tier_notes, *privacy_notes),
            running_here=limit_here,
            running_everywhere=limit_everywhere,
        )
        for new_job in new_jobs
    ]


def check_before_content(
    action: str, count: int, rules: EffectiveRules, ledger: Ledger, queue_state: QueueState, *, relaxed: bool = False
) -> None:
    """Check `count` jobs of unknown content and cost. Raises `UserError` only where `apply_rules` would, too."""
    check_action(rules, action)
    preference = known_preferences(ledger.load_preferences())
    tier, _ = _choose_tier(rules, preference, relaxed)
    _choose_privacy(rules, preference)
    _check_usage(count, None, rules, ledger, queue_state, is_relaxed=tier == RELAXED_TIER)


def _refuse_if_closed_or_blocked(rules: EffectiveRules) -> None:
    if rules.closed:
        closing_rule = rules.deciding_rules.get("closed")
        closed_part = "This bot" if closing_rule is not None and closing_rule.guild == EVERYWHERE else "This server"
        opener = (
            "this bot's operator"
            if closing_rule is not None and closing_rule.scope == "operator"
            else "the server's owner"
        )
        sentence = f"{closed_part} accepts no new jobs: {rules.closed}. It stays closed until {opener} opens it."
        raise UserError(sentence, 403)
    if rules.blocked:
        raise UserError(_blocked_sentence(rules.deciding_rules.get("blocked")), 403)


def _blocked_sentence(rule: Rule | None) -> str:
    if rule is not None and (rule.scope == "operator" or rule.guild == EVERYWHERE):
        blocked_part = "you" if rule.scope == "user" else "everybody" if rule.guild == EVERYWHERE else "this server"
        return f"This bot's operator has blocked {blocked_part}: nothing can be made until they take that back."
    blocked_part = "A role of yours is" if rule is not None and rule.scope == "role" else "You are"
    return f"{blocked_part} blocked on this server: you can make nothing here until its admins unblock you."


def check_action(rules: EffectiveRules, action: str) -> None:
    """Raise `UserError` (403) if the server is closed, the member blocked, or the action forbidden."""
    _refuse_if_closed_or_blocked(rules)
    check_allowed(rules, "commands", action)


def check_allowed(rules: EffectiveRules, setting: str, name: str) -> None:
    """Raise `UserError` (403) if the rules forbid what has this name: a model, a sampler, …"""
    if not rules.allows(setting, name):
        raise UserError(_with_allowed(rules, setting, FORBIDDEN_SENTENCES[setting].format(name)), 403)


def check_task(rules: EffectiveRules, new_job: NewJob) -> None:
    """Raise `UserError` if the rules forbid the job, regardless of usage."""
    check_action(rules, new_job.action)
    task = new_job.task
    if not isinstance(task, Recipe):
        return
    check_allowed(rules, "models", task.model)
    check_allowed(rules, "samplers", task.sampler)
    for control in task.controls:
        check_allowed(rules, "controls", control.name)
    for reference in task.references:
        check_allowed(rules, "references", reference.name)
    evaluations = min(count_requested_evaluations(task), count_evaluations(task))  # a picture or a stop may leave fewer
    pictures = max(task.count, len(list_final_images(task)))  # a split adds some
    counts = (("steps", task.steps), ("evaluations", evaluations), ("count", pictures))
    for name, requested_count in counts:
        limit = getattr(rules, name)
        if requested_count > limit:
            noun = "pictures" if name == "count" else name
            hint = _lower_hint(new_job, name, limit)
            sentence = f"This asks for {requested_count} {noun}, and at most {limit} are allowed here: {hint}."
            if task.interpolation is not None and name == "count":
                sentence = NO_INTERPOLATION.format(limit)
            raise UserError(_with_setter(sentence, rules, name))
    if task.width * task.height > rules.pixels:
        limit = format_for_sentence("pixels", rules.pixels)
        sentence = f"This would be {task.width}x{task.height}, and at most {limit} is allowed here."
        raise UserError(_with_setter(sentence, rules, "pixels"))


def _lower_hint(new_job: NewJob, name: str, limit: int) -> str:
    """Say how to stay below the limit: a button on an older job takes no flags, but its remix does."""
    cannot_skip = name == "evaluations" and getattr(new_job.task, "sampler", "") in PIPELINE_SAMPLERS
    flag = f"--{'steps' if cannot_skip else name} {limit}"
    return f"add {flag}" if new_job.action in ("imagine", "remix") else f"remix it with {flag}"


def _with_allowed(rules: EffectiveRules, setting: str, sentence: str) -> str:
    allowed_names = ", ".join(getattr(rules, setting)) or "none"
    return _with_setter(f"{sentence}; allowed: {shorten(allowed_names, 200)}.", rules, setting)


def _with_setter(sentence: str, rules: EffectiveRules, setting: str) -> str:
    return f"{sentence} {set_by_sentence(rules.deciding_rules.get(setting))}".rstrip()


def _choose_tier(rules: EffectiveRules, preference: Preference, wants_relaxed: bool) -> tuple[str, tuple[str, ...]]:
    """Return the tier, with a note. Raises `UserError` if the requested speed is forbidden.

    If the preferred speed is forbidden, the other one is used, with a note if the job then waits longer.
    """
    if wants_relaxed:
        check_allowed(rules, "speeds", "relaxed")
    speed = "relaxed" if wants_relaxed else preference.speed
    if not rules.allows("speeds", speed):
        speed = "relaxed" if speed == "fast" else "fast"
    if not rules.allows("speeds", speed):
        raise UserError(_with_allowed(rules, "speeds", "No speed is allowed to you here"), 403)
    if speed == "fast":
        return "standard", ()
    return RELAXED_TIER, () if wants_relaxed or preference.speed == "relaxed" else (RELAXED_ONLY,)


def _choose_privacy(rules: EffectiveRules, preference: Preference) -> tuple[bool, tuple[str, ...]]:
    """Return whether the job is private, with a note.

    Refuses a member who prefers private results where they are public: no rule makes public what its author does not.
    """
    prefers_private = preference.results == "private"
    if rules.results == "public" and prefers_private:
        sentence = "Results are public here, and you prefer private ones. To take part: /public."
        raise UserError(_with_setter(sentence, rules, "results"), 403)
    if rules.results == "private" and not prefers_private:
        return True, ("Results are private here: only you see this one.",)
    return prefers_private, ()


def _running_limit(rules: EffectiveRules, whose: str) -> int | None:
    limits = (usage_limit.limit for usage_limit in rules.limits_of("running") if usage_limit.usage_scope == whose)
    return min(limits, default=None)


def _running_besides(rules: EffectiveRules, usage_limit: UsageLimit, usage: Usage) -> int:
    """Return the running limit for the same jobs that `usage_limit` counts; over all servers each allows its own."""
    if usage_limit.usage_scope != "member everywhere":
        return rules.running
    limit_everywhere = _running_limit(rules, "member everywhere")
    return max(rules.running, usage.running) if limit_everywhere is None else limit_everywhere


def _check_usage(
    count: int, cost: float | None, rules: EffectiveRules, ledger: Ledger, queue_state: QueueState, *, is_relaxed: bool
) -> None:
    """Check all limits. `cost`: of all these jobs, in device-seconds; None: unknown, but above 0."""
    cost_checks = _cost_checks(cost, rules, ledger, queue_state.now, is_relaxed=is_relaxed, advice=STEPS_ADVICE)
    _raise_latest_refusal(chain(_queue_checks(count, rules, ledger, queue_state), cost_checks))


def _queue_checks(
    count: int, rules: EffectiveRules, ledger: Ledger, queue_state: QueueState
) -> Iterator[Callable[[], None]]:
    now = queue_state.now
    has_workers = queue_state.has_workers
    for usage_limit in rules.limits_of("queued"):
        usage = ledger.get_usage(usage_limit.usage_scope)
        usage = replace(usage, next_free_at=queue_state.member_frees_at, has_workers=has_workers)
        running = _running_besides(rules, usage_limit, usage)
        set_by = set_by_sentence(usage_limit.rule)
        yield partial(check_job_count, running, usage_limit.limit, usage, now, count=count, set_by=set_by)
    for usage_limit in rules.limits_of("together_queued"):
        usage = ledger.get_usage(usage_limit.usage_scope)
        usage = replace(usage, next_free_at=queue_state.any_frees_at, has_workers=has_workers)
        owner = SHARED_OWNERS[usage_limit.usage_scope]
        set_by = set_by_sentence(usage_limit.rule)
        yield partial(check_shared_queue, usage_limit.limit, usage, now, owner=owner, count=count, set_by=set_by)


def check_device_time(
    cost: float,
    rules: EffectiveRules,
    ledger: Ledger,
    now: float,
    *,
    is_relaxed: bool = False,
    advice: str = MODEL_ADVICE,
) -> None:
    """Check that a member may spend `cost` device-seconds on work that is no new job. Raises `UserError` (429)."""
    _raise_latest_refusal(_cost_checks(cost, rules, ledger, now, is_relaxed=is_relaxed, advice=advice))


def _raise_latest_refusal(checks: Iterable[Callable[[], None]]) -> None:
    """Run all checks. If several refuse, raise the refusal with the latest `retry_at`: by then all others allow it."""
    refusals = list[UserError]()
    for check in checks:
        try:
            check()
        except UserError as refusal:
            refusals.append(refusal)
    if refusals:
        raise max(refusals, key=lambda refusal: (refusal.retry_at is None, refusal.retry_at or 0.0))


def _cost_checks(
    cost: float | None, rules: EffectiveRules, ledger: Ledger, now: float, *, is_relaxed: bool, advice: str
) -> Iterator[Callable[[], None]]:
    """Yield the check of each limit on device time. Relaxed jobs count against a limit of their own only."""
    hint = RELAXED_HINT if not is_relaxed and rules.allows("speeds", "relaxed") else ""
    for setting in ("relaxed_day",) if is_relaxed else COST_SETTINGS:
        for usage_limit in rules.limits_of(setting):
            spending = _get_spending(usage_limit, ledger)
            owner = "Your relaxed" if is_relaxed else SHARED_OWNERS.get(usage_limit.usage_scope, "Your")
            set_by = f"{set_by_sentence(usage_limit.rule)} {hint}".strip()
            limit = usage_limit.limit
            if cost is None:
                yield partial(check_cost_left, limit, spending, now, owner=owner, set_by=set_by)
            else:
                yield partial(check_cost, limit, spending, cost, now, owner=owner, set_by=set_by, advice=advice)


def _get_spending(usage_limit: UsageLimit, ledger: Ledger) -> Spending:
    if usage_limit.setting == "relaxed_day":
        return ledger.get_relaxed_spending(usage_limit.usage_scope, DAY_SECONDS)
    return ledger.get_spending(usage_limit.usage_scope, COST_WINDOWS[usage_limit.setting.removeprefix("together_")])


LIMIT_TITLES = {
    "running": "running",
    "queued": "waiting",
    "cost_day": "device time in 24 hours",
    "cost_month": "device time in 30 days",
    "relaxed_day": "relaxed device time in 24 hours",
}


@dataclass(frozen=True)
class QuotaLine:
    """One limit: `used` of `limit` jobs or device-seconds, by `counted_for`. `frees_at`: when some becomes free."""

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
    spending = _get_spending(cap, ledger)
    frees_at = spending.frees_at(0.0) if spending.total_cost > 0 else None
    return QuotaLine(cap.setting, cap.limit, spending.total_cost, cap.usage_scope, cap.rule, frees_at)
