"""Steps of a change, computed from the current rules of a guild and the wanted ones. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from bot.refused import Refused
from bot.rules.catalogue import SETTINGS, Setting
from bot.rules.rule import EVERYWHERE, Change, Key, Scope, Step, Value, check_subject, steps_between
from bot.rules.sheet import ABSENT
from bot.rules.telling import shown
from bot.sentences import shortened

Rules = Mapping[Key, Value]
MOST_RULES = 1000  # of one guild
MOST_TEXT = 200_000  # characters of all of them: each request reads them, and a change may write them all down


def check_scope(one: Setting, guild: str, scope: Scope, subject: str) -> None:
    """Raise `Refused` (422) if a setting cannot be set for that scope and subject."""
    allowed = tuple(s for s in one.scopes if guild != EVERYWHERE or s in ("house", "user"))
    if scope not in allowed:
        offered = [name for name in allowed if name != "house" or guild == EVERYWHERE]  # ceilings: the operator alone
        said = ", ".join("server" if name == "guild" else name for name in offered) or "one server at a time"
        raise Refused(f"{one.name} cannot be set for {_article(scope)}; it can for: {said}.")
    if (scope in ("house", "guild")) != (not subject):
        raise Refused(f"A rule for {_article(scope)} {'takes no id' if subject else 'needs its id'}.")
    if subject:
        check_subject(guild, scope, subject)


def _article(scope: Scope) -> str:
    return {"house": "a ceiling", "guild": "a server"}.get(scope, f"a {scope}")


def replaced(before: Rules, key: Key, value: Value | None) -> tuple[Step, ...]:
    """Return the steps that set one rule or (None) unset it. Raises `Refused` (422) if nothing changes."""
    after = {**before, key: value}
    steps = steps_between(before, {key: value for key, value in after.items() if value is not None})
    if not steps and value is None:
        raise Refused(f"There is no such rule: {key[2]} is not set there.")
    if not steps:
        raise Refused(f"{key[2]} is {shown(key[2], value)} there already.")
    return _bounded(before, steps)


def altered(before: Rules, values: Mapping[Key, Value | None]) -> tuple[Step, ...]:
    """Return the steps that set or (None) unset several rules; others stay. Raises `Refused` if nothing changes."""
    after = {key: value for key, value in {**before, **values}.items() if value is not None}
    steps = steps_between(before, after)
    if not steps:
        raise Refused("All of that is set already.")
    return _bounded(before, steps)


def reopened(before: Rules, *, house: bool) -> tuple[Step, ...]:
    """Return the steps that remove `closed`. Raises `Refused` if it is open (422) or the operator closed it (403)."""
    theirs, own = ("house", "", "closed"), ("guild", "", "closed")
    if theirs in before and not house:
        raise Refused("This bot's operator closed this server: only they can open it.", 403)
    if theirs not in before and own not in before:
        raise Refused("It is open already.")
    return steps_between(before, {key: value for key, value in before.items() if key not in (theirs, own)})


def brought(before: Rules, values: Rules) -> tuple[Step, ...]:
    """Return the steps that replace all rules that a YAML file can hold. Raises `Refused` if nothing changes."""
    stays = {key: value for key, value in before.items() if key[0] == "house" or key[2] in ABSENT}
    steps = steps_between(before, {**stays, **values})
    if not steps:
        raise Refused("The rules are the same already: nothing to import.")
    return _bounded(before, steps)


def undone(before: Rules, change: Change, later: int | None) -> tuple[Step, ...]:
    """Return the steps that undo a change. Raises `Refused` if it is undone, or if one of its rules was set again.

    `later`: the newest later change of one of its rules, for the sentence.
    """
    if change.undone is not None:
        raise Refused(f"Change {change.number} is undone already, by change {change.undone}.")
    for step in change.steps:
        if before.get(step.key) != step.after:
            since = f" by change {later}" if later else ""
            raise Refused(
                f"Change {change.number} cannot be undone: {step.setting} was changed again since{since}. "
                f"Undo that first, or set it by hand."
            )
    return _bounded(before, tuple(step.inverse() for step in reversed(change.steps)))


def closing(reason: str, name: str) -> str:
    """Return the value of `closed`: the reason, and who closed it."""
    most, by = SETTINGS["closed"].most, f" (closed by {shortened(name, 60)})"
    return (shortened(reason, most - len(by)).rstrip(".") or "no reason given") + by


def _bounded(before: Rules, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Return the steps. Raises `Refused` if they bring the admins' rules over a server's limits of number or length.

    Steps that remove rules always pass. So do ceilings and closing: a full server cannot keep them out.
    """
    theirs = [step for step in steps if step.scope != "house" and step.setting not in ABSENT]
    more = sum((step.before is None) - (step.after is None) for step in theirs)
    held = [(key, value) for key, value in before.items() if key[0] != "house" and key[2] not in ABSENT]
    if more > 0 and len(held) + more > MOST_RULES:
        raise Refused(f"A server has at most {MOST_RULES} rules; it has {len(held)}, and these are {more} more.")
    longer = sum(_length(step.key, step.after) - _length(step.key, step.before) for step in theirs)
    length = sum(_length(key, value) for key, value in held)
    if longer > 0 and length + longer > MOST_TEXT:
        raise Refused(
            f"All rules of a server have at most {MOST_TEXT:,} characters together; these would make them "
            f"{length + longer:,}. Shorten or remove some lists first."
        )
    return steps


def _length(key: Key, value: Value | None) -> int:
    """Return the characters of a rule; 0 for none."""
    if value is None:
        return 0
    return sum(map(len, key)) + sum(map(len, value if isinstance(value, tuple) else (str(value),)))
