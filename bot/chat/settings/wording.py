"""Texts about rules and changes for the admins' cards, in Discord's markdown.

Pure: values in, texts out. Roles, channels and members are mentions, which every client shows as names. Text that a
person wrote always goes through `quoted`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from bot.rules.catalogue import SETTINGS
from bot.rules.reading import UNLIMITED, written
from bot.rules.rule import SCOPES, Change, Rule, Scope, Step, Value
from bot.sentences import quoted, shortened

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "running": "Running at once",
        "queued": "Waiting in line",
        "cost_day": "Device time a day",
        "cost_month": "Device time a month",
        "steps": "Most steps",
        "pixels": "Largest picture",
        "count": "Pictures of one job",
        "models": "Models",
        "samplers": "Samplers",
        "commands": "Commands",
        "results": "Results",
        "speeds": "Speeds",
        "blocked": "Blocked",
        "together_running": "All together: running",
        "together_queued": "All together: waiting",
        "together_cost_day": "All together: time a day",
        "together_cost_month": "All together: time a month",
        "closed": "Closed",
        "words": "Refused words",
        "patterns": "Refused patterns",
        "check": "Picture check",
        "reports": "Reports go to",
        "previews": "Live previews",
        "long_ping": "Ping after long jobs",
    }
)
EACH = tuple(name for name, one in SETTINGS.items() if "user" in one.scopes and name != "blocked")
TOGETHER = tuple(name for name in SETTINGS if name.startswith("together_"))
SWITCHES = ("check", "previews", "long_ping", "reports")
DID: Mapping[str, str] = MappingProxyType(
    {
        "set": "set",
        "unset": "removed",
        "preset": "applied a preset",
        "import": "imported a file",
        "close": "closed",
        "open": "opened",
        "budget": "set the budget",
        "undo": "undid",
    }
)
LISTED, NO_RULE = 90, "no rule"
NO_LIMIT = UNLIMITED[0]
ENTRY = 560  # characters of one change in the history
HOUSE: Scope = "house"


def title(setting: str) -> str:
    """Return a setting's title on a card."""
    return TITLES.get(setting) or setting.replace("_", " ")


def alone(setting: str) -> str:
    """Return its title under the heading "All together"."""
    said = title(setting).removeprefix("All together: ")
    return said[:1].upper() + said[1:]


def whom(scope: Scope, subject: str) -> str:
    """Return for whom a rule holds."""
    number = subject.rpartition(":")[2]
    if scope == HOUSE:
        return "the whole server 🔒"
    if scope == "guild" or not number.isdigit():
        return "everyone"
    return {"channel": f"<#{number}>", "role": f"<@&{number}>", "user": f"<@{number}>"}[scope]


def said(setting: str, value: Value | None) -> str:
    """Return a value, as short as possible for a phone."""
    if value is None:
        return NO_RULE
    one = SETTINGS.get(setting)
    if one is None:
        return quoted(str(value), LISTED)
    if one.kind == "texts" and isinstance(value, tuple):
        return f"{len(value)} {one.unit if len(value) != 1 else one.unit.removesuffix('s')}"
    if one.kind == "channel":
        return f"<#{value}>"
    return quoted(written(one, value), LISTED)


def plainly(setting: str, value: Value) -> str:
    """Return a value without markdown, for a select or a field."""
    one = SETTINGS.get(setting)
    return shortened(str(value) if one is None else written(one, value), LISTED)


def stepped(step: Step) -> str:
    """Return one line of a change: "Running at once for @crew: 3 → **5**"."""
    holds = "" if step.scope in ("guild", HOUSE) else f" for {whom(step.scope, step.subject)}"
    lock = "🔒 " if step.scope == HOUSE else ""
    return f"{lock}{title(step.setting)}{holds}: {said(step.setting, step.before)} → **{_after(step)}**"


def _after(step: Step) -> str:
    """Return the new value; of a list also how many were added and removed, since equal counts look alike."""
    if isinstance(step.before, tuple) and isinstance(step.after, tuple) and SETTINGS[step.setting].kind == "texts":
        new, gone = len({*step.after} - {*step.before}), len({*step.before} - {*step.after})
        return f"{said(step.setting, step.after)} (+{new}, −{gone})"
    return said(step.setting, step.after)


def steps(found: Sequence[Step]) -> list[str]:
    """Return all lines of a change, in the order of the settings' card."""
    order = {name: place for place, name in enumerate(SETTINGS)}
    return [f"• {stepped(step)}" for step in sorted(found, key=lambda one: order.get(one.setting, len(order)))]


def changed(change: Change) -> str:
    """Return what has just been done: one line for one rule, a count for more."""
    if not change.steps:
        return "Nothing changed: it was so already."
    if len(change.steps) == 1:
        return f"✅ {stepped(change.steps[0])}"
    return f"✅ {len(change.steps)} rules changed."


def besides(step: Step, rules: Sequence[Rule]) -> list[str]:
    """Return what holds in spite of a new rule: ceilings above it, and more specific rules."""
    same = [rule for rule in rules if rule.setting == step.setting]
    high = [rule for rule in same if rule.scope == HOUSE and step.scope != HOUSE]
    near = sum(SCOPES.index(rule.scope) > SCOPES.index(step.scope) for rule in same)
    lines = [f"-# 🔒 This bot's operator allows {said(rule.setting, rule.value)}: that still holds." for rule in high]
    if near:
        lines.append(f"-# {near} {'more specific rule goes' if near == 1 else 'more specific rules go'} first.")
    return lines


def entry(change: Change) -> str:
    """Return a change in the history: who, what, when, and its first lines."""
    whose = quoted(change.actor_name, 32)
    undid = f"undid no. {change.undoes}" if change.undoes else DID.get(change.what, change.what)
    head = f"**{change.number}.** {whose} {undid} · <t:{round(change.at)}:R>"
    back = [f"-# taken back by no. {change.undone}"] if change.undone else []
    return "\n".join([*fitting([head, *steps(change.steps)], ENTRY, 4), *back])


def fitting(lines: Sequence[str], limit: int, most: int = 1000) -> list[str]:
    """Return the whole lines that fit into `limit` characters, at most `most`, and how many did not."""
    kept, used = list[str](), 0
    for number, line in enumerate(lines):
        if number >= most or used + len(line) + 1 > limit - 24:
            return [*kept, f"-# … and {len(lines) - number} more"]
        kept.append(line)
        used += len(line) + 1
    return kept
