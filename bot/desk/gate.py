"""Quota check: decides whether a request is admitted under the member's effective rules, with one sentence if not.

Runs inside the transaction that writes the jobs, so that nothing changes between check and write. Every refusal names
the limit, the use, when some of it frees (if known), and who set the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from bot.desk.preferences import Preference
from bot.limits import DAY, MONTH, Usage, check_cost, check_left, check_places, check_waiting
from bot.refused import Refused
from bot.rules import EVERYWHERE, Cap, Rule, Terms
from bot.rules.telling import set_by, shown
from bot.sentences import shortened
from bot.store import WEIGHTS, Draft
from bot.store.ledger import Ledger
from bot.store.records import RELAXED
from engine.job import Recipe

HINT = "Relaxed jobs (--relax, or /relax) do not count against it."
SLOWED = "Only the relaxed speed is allowed to you here: it waits longer, and costs nothing of your limits."
NO_WALK = "A walk is drawn up to four pictures at a time, and at most {} a job are allowed here: none can be made."
OVER = {"channel": "This channel's", "guild": "This server's"}
COSTS = {"cost_day": DAY, "cost_month": MONTH}


@dataclass(frozen=True)
class Hour:
    """The time of the check. `frees`: when the first of the member's jobs ends; `room`: when the first job of anybody
    ends; None if unknown. `workers`: whether any is online.
    """

    now: float
    frees: float | None = None
    room: float | None = None
    workers: bool = True


def passed(
    drafts: Sequence[Draft], terms: Terms, ledger: Ledger, preference: Preference, hour: Hour, *, relaxed: bool = False
) -> list[Draft]:
    """Return the jobs as they may be written: with tier, privacy, picture check and running limits. Raises `Refused`.

    `relaxed`: the member asked for that speed in this request, beyond preferring it.
    """
    check_open(terms)
    for draft in drafts:
        check_asked(terms, draft)
    tier, slowed = _tier(terms, preference, relaxed)
    private, hidden = _privacy(terms, preference)
    cost = sum(draft.cost for draft in drafts)
    _check_use(len(drafts), cost, terms, ledger, hour, free=tier == RELAXED)
    here, everywhere = _running(terms, "member here"), _running(terms, "member everywhere")
    return [
        replace(
            draft, member=replace(draft.member, tier=tier), private=private, check=draft.check or terms.check,
            weight=WEIGHTS.get(tier, 1.0),
            notes=(*draft.notes, *slowed, *hidden), running_here=here, running_everywhere=everywhere,
        )
        for draft in drafts
    ]  # fmt: skip


def check_early(
    action: str, count: int, terms: Terms, ledger: Ledger, preference: Preference, hour: Hour, *, relaxed: bool = False
) -> None:
    """Check `count` jobs before their content and cost are known. Raises `Refused` only for what `passed` would refuse
    too.
    """
    check_open(terms)
    check_action(terms, action)
    tier, _ = _tier(terms, preference, relaxed)
    _privacy(terms, preference)
    _check_use(count, None, terms, ledger, hour, free=tier == RELAXED)


def check_open(terms: Terms) -> None:
    """Raise `Refused` (403) if the server is closed or the member blocked."""
    if terms.closed:
        by = terms.because.get("closed")
        what = "This bot" if by is not None and by.guild == EVERYWHERE else "This server"
        opener = "this bot's operator" if by is not None and by.scope == "house" else "the server's owner"
        raise Refused(f"{what} is closed for new pictures: {terms.closed}. It waits for {opener} to open it.", 403)
    if terms.blocked:
        raise Refused(_blocked(terms.because.get("blocked")), 403)


def _blocked(rule: Rule | None) -> str:
    if rule is not None and (rule.scope == "house" or rule.guild == EVERYWHERE):
        whom = "you" if rule.scope == "user" else "everybody" if rule.guild == EVERYWHERE else "this server"
        return f"This bot's operator has blocked {whom}: nothing can be made until they take that back."
    whom = "A role of yours is" if rule is not None and rule.scope == "role" else "You are"
    return f"{whom} blocked on this server: you can make nothing here until its admins unblock you."


def check_action(terms: Terms, action: str) -> None:
    """Raise `Refused` (403) if the rules forbid the action."""
    if not terms.allows("commands", action):
        raise Refused(_said(terms, "commands", f"You may not use {action} here"), 403)


def check_model(terms: Terms, model: str) -> None:
    """Raise `Refused` (403) if the rules forbid the model."""
    if not terms.allows("models", model):
        raise Refused(_said(terms, "models", f"The model {model} is not allowed here"), 403)


def check_asked(terms: Terms, draft: Draft) -> None:
    """Raise `Refused` if the rules forbid the job, regardless of usage."""
    check_action(terms, draft.action)
    task = draft.task
    if not isinstance(task, Recipe):
        return
    check_model(terms, task.model)
    if not terms.allows("samplers", task.sampler):
        raise Refused(_said(terms, "samplers", f"The sampler {task.sampler} is not allowed here"), 403)
    for name, asked in (("steps", task.steps), ("count", task.count)):
        most = getattr(terms, name)
        if asked > most:
            what = {"steps": "steps", "count": "pictures"}[name]
            said = f"This asks for {asked} {what}, and at most {most} are allowed here: {_less(draft, name, most)}."
            raise Refused(_with(said if task.walk is None or name == "steps" else NO_WALK.format(most), terms, name))
    if task.width * task.height > terms.pixels:
        most = shown("pixels", terms.pixels)
        said = f"This would be {task.width}x{task.height}, and at most {most} is allowed here."
        raise Refused(_with(said, terms, "pixels"))


def _less(draft: Draft, name: str, most: int) -> str:
    """Say how to stay below the limit: a button on an older job takes no flags, but its remix does."""
    flag = f"--{name} {most}"
    return f"add {flag}" if draft.action in ("imagine", "remix") else f"remix it with {flag}"


def _said(terms: Terms, setting: str, what: str) -> str:
    listed = ", ".join(getattr(terms, setting)) or "none"
    return _with(f"{what}; allowed: {shortened(listed, 200)}.", terms, setting)


def _with(said: str, terms: Terms, setting: str) -> str:
    return f"{said} {set_by(terms.because.get(setting))}".rstrip()


def _tier(terms: Terms, preference: Preference, relaxed: bool) -> tuple[str, tuple[str, ...]]:
    """Return the tier, with a note. A speed that was asked for must be allowed; a preferred one gives way, with a note
    if the job then waits longer.
    """
    if relaxed and not terms.allows("speeds", "relaxed"):
        raise Refused(_said(terms, "speeds", "The relaxed speed is not allowed here"), 403)
    wanted = "relaxed" if relaxed else preference.speed
    if not terms.allows("speeds", wanted):
        wanted = "relaxed" if wanted == "fast" else "fast"
    if not terms.allows("speeds", wanted):
        raise Refused(_said(terms, "speeds", "No speed is allowed to you here"), 403)
    if wanted == "fast":
        return "standard", ()
    return RELAXED, () if relaxed or preference.speed == "relaxed" else (SLOWED,)


def _privacy(terms: Terms, preference: Preference) -> tuple[bool, tuple[str, ...]]:
    """Return whether the job is private, with a note. Refuses members who prefer private results where results are
    public.

    So no rule makes a result public that its author wants private, and the author learns it before anything is made.
    """
    likes = preference.results == "private"
    if terms.results == "public" and likes:
        said = "Results are public here, and you prefer private ones. To take part: /public."
        raise Refused(_with(said, terms, "results"), 403)
    if terms.results == "private" and not likes:
        return True, ("Results are private here: only you see this one.",)
    return likes, ()


def _running(terms: Terms, whose: str) -> int | None:
    return min((cap.limit for cap in terms.of("running") if cap.whose == whose), default=None)


def _beside(terms: Terms, cap: Cap, usage: Usage) -> int:
    """Return how many jobs may run besides the `cap.limit` that may wait, counted as `cap` counts.

    Without a limit on running jobs over all servers, each server allows its own.
    """
    if cap.whose != "member everywhere":
        return terms.running
    everywhere = _running(terms, "member everywhere")
    return max(terms.running, usage.running) if everywhere is None else everywhere


def _check_use(
    count: int, cost: float | None, terms: Terms, ledger: Ledger, hour: Hour, *, free: bool
) -> None:  # fmt: skip
    """Check all limits; of several that are reached, raise the one that frees last, whose time then holds for all.

    `cost`: of all these jobs, in device-seconds; None: more than nothing.
    """
    checks = _checks(count, cost, terms, ledger, hour, free)
    found = [refused for check in checks if (refused := _tried(check)) is not None]
    if found:
        raise max(found, key=lambda refused: (refused.frees is None, refused.frees or 0.0))


def _tried(check: Callable[[], None]) -> Refused | None:
    try:
        check()
    except Refused as refused:
        return refused
    return None


def _checks(
    count: int, cost: float | None, terms: Terms, ledger: Ledger, hour: Hour, free: bool
) -> Iterator[Callable[[], None]]:
    for cap in terms.of("queued"):
        usage = replace(ledger.usage(cap.whose), next_free=hour.frees, workers=hour.workers)
        running = _beside(terms, cap, usage)
        yield partial(check_places, running, cap.limit, usage, hour.now, count=count, by=set_by(cap.rule))
    for cap in terms.of("together_queued"):
        usage = replace(ledger.usage(cap.whose), next_free=hour.room, workers=hour.workers)
        whose = OVER[cap.whose]
        yield partial(check_waiting, cap.limit, usage, hour.now, whose=whose, count=count, by=set_by(cap.rule))
    hint = HINT if terms.allows("speeds", "relaxed") else ""
    for setting, window in COSTS.items() if not free else ():
        for cap in (*terms.of(setting), *terms.of(f"together_{setting}")):
            used, by = ledger.spending(cap.whose, window), f"{set_by(cap.rule)} {hint}".strip()
            whose = OVER.get(cap.whose, "Your")
            if cost is None:
                yield partial(check_left, cap.limit, used, hour.now, whose=whose, by=by)
            else:
                yield partial(check_cost, cap.limit, used, cost, hour.now, whose=whose, by=by)
