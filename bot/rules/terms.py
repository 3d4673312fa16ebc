"""Effective rules of one member in one place: which rules apply, their precedence, and which one decides. Pure.

Precedence, for each setting alone: a rule for the user, else for one of their roles (of several the most generous; but
if one of them is `blocked: on`, that counts), else for the channel, else for the server, else this bot's default. Above
all of them are the operator's ceilings: for the server (scope "house"), and everywhere (guild "*", where a rule for a
user replaces the general one). A ceiling can only restrict.

Usage is counted where the deciding limit applies: in the server for its own rules, in all servers for the default and
for ceilings everywhere. Limits that begin with `together_` apply side by side: the channel's counts the jobs of that
channel, the server's and its ceiling count the whole server. A ceiling for this server replaces the one that applies
everywhere, which gives each server the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, cast

from bot.limits import Limits
from bot.rules.catalogue import SETTINGS, Setting
from bot.rules.rule import ALL, EVERYWHERE, Rule, Scope, Value
from bot.views import Member

Whose = Literal["member here", "member everywhere", "channel", "guild"]
Results = Literal["public", "private", "choice"]
COUNTED = ("running", "queued", "cost_day", "cost_month")
NOTHING: Mapping[str, Rule | None] = MappingProxyType({})


@dataclass(frozen=True)
class Cap:
    """One limit on usage. `whose` usage counts, and where; `rule` is None for the bot's default."""

    setting: str
    limit: int
    whose: Whose
    rule: Rule | None = None


@dataclass(frozen=True)
class Terms:
    """Effective values, by the names of `bot.rules.catalogue`. Costs are device-seconds; `pixels` is an area.

    `caps` are all limits on usage that apply; the fields `running` … `together_cost_month` are the lowest of each. A
    `together_` field of None is no limit. `because`: the rule that decides each setting, None for the bot's default.
    """

    running: int = 3
    queued: int = 7
    cost_day: int = 1800
    cost_month: int = SETTINGS["cost_month"].most
    steps: int = SETTINGS["steps"].most
    pixels: int = SETTINGS["pixels"].most
    count: int = SETTINGS["count"].most
    models: tuple[str, ...] = ALL
    samplers: tuple[str, ...] = ALL
    commands: tuple[str, ...] = ALL
    results: Results = "choice"
    speeds: tuple[str, ...] = ALL
    blocked: bool = False
    together_running: int | None = None
    together_queued: int | None = None
    together_cost_day: int | None = None
    together_cost_month: int | None = None
    closed: str = ""
    words: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    check: bool = False
    reports: str = ""
    previews: bool = True
    long_ping: int = 60
    caps: tuple[Cap, ...] = ()
    because: Mapping[str, Rule | None] = field(default_factory=lambda: NOTHING)

    def allows(self, setting: str, name: str) -> bool:
        """Return whether a list (models, samplers, commands, speeds) allows `name`."""
        listed = cast("tuple[str, ...]", getattr(self, setting))
        return listed == ALL or name in listed

    def of(self, setting: str) -> tuple[Cap, ...]:
        """Return the caps of one setting."""
        return tuple(cap for cap in self.caps if cap.setting == setting)


def resolve(rules: Iterable[Rule], member: Member, defaults: Limits) -> Terms:
    """Return the terms of `member` where they are. `rules`: their guild's and those everywhere; others are ignored."""
    mine = sorted((rule for rule in rules if _sound(rule) and applies(rule, member)), key=_near)
    by: dict[str, list[Rule]] = {}
    for rule in mine:
        by.setdefault(rule.setting, []).append(rule)
    values: dict[str, Value | None] = {}
    because: dict[str, Rule | None] = {}
    caps: list[Cap] = []
    for name, setting in SETTINGS.items():
        found = by.get(name, [])
        if name in COUNTED or name.startswith("together_"):
            held = _together(name, found) if name.startswith("together_") else _counted(setting, found, defaults)
            caps += [cap for cap in held if cap.limit < setting.most]
            least = min(held, key=lambda cap: cap.limit, default=None)
            values[name], because[name] = (least.limit, least.rule) if least else (None, None)
        else:
            values[name], because[name] = _weighed(setting, found)
    given = {name: value for name, value in values.items() if value is not None}
    return Terms(**given, caps=tuple(caps), because=MappingProxyType(because))  # pyright: ignore[reportArgumentType]


def _sound(rule: Rule) -> bool:
    setting = SETTINGS.get(rule.setting)
    return setting is not None and rule.scope in setting.scopes and setting.takes(rule.value)


def _near(rule: Rule) -> tuple[bool, int, str]:
    """Sort in a fixed order, so that of equal limits the nearest one decides."""
    return rule.guild == EVERYWHERE, ("user", "role", "channel", "guild", "house").index(rule.scope), rule.subject


def applies(rule: Rule, member: Member) -> bool:
    """Return whether a rule is for this member where they are."""
    if rule.guild == EVERYWHERE:
        return rule.scope == "house" or (rule.scope == "user" and rule.subject == member.id)
    if rule.guild != member.guild:
        return False
    subjects: Mapping[Scope, Sequence[str]] = {
        "house": ("",), "guild": ("",), "channel": (member.channel,), "role": member.roles, "user": (member.id,),
    }  # fmt: skip
    return rule.subject in subjects[rule.scope]


def _own(setting: Setting, rules: Sequence[Rule]) -> Rule | None:
    """Return the guild's own rule that decides: the nearest to the member."""
    for scope in ("user", "role", "channel", "guild"):
        near = [rule for rule in rules if rule.scope == scope and rule.guild != EVERYWHERE]
        if near:
            return most_generous(setting, near) if scope == "role" else near[0]
    return None


def ceilings(rules: Sequence[Rule]) -> list[Rule]:
    """Return the operator's ceilings: for this server, and everywhere (there, for the user before the general one)."""
    here = [rule for rule in rules if rule.scope == "house" and rule.guild != EVERYWHERE]
    wide = [rule for rule in rules if rule.guild == EVERYWHERE]
    return here + sorted(wide, key=lambda rule: rule.scope == "house")[:1]


def most_generous(setting: Setting, rules: Sequence[Rule]) -> Rule:
    """Return the most generous of several roles' rules. Lists are joined; a block always wins."""

    def generous(rule: Rule) -> tuple[int, str]:
        value = rule.value
        if isinstance(value, tuple):
            return (10_000 if value == ALL else len(value)), rule.subject
        if isinstance(value, bool):
            return int(value), rule.subject
        if isinstance(value, int):
            return value, rule.subject
        return ("private", "public", "choice").index(value) if setting.name == "results" else 0, rule.subject

    best = max(rules, key=generous)
    lists = [rule.value for rule in rules if isinstance(rule.value, tuple)]
    if len(lists) < 2 or best.value == ALL:
        return best
    joined = tuple(sorted({part for value in lists for part in value}))
    return Rule(best.scope, best.subject, best.setting, joined, best.guild)


def _counted(setting: Setting, rules: Sequence[Rule], defaults: Limits) -> list[Cap]:
    """Return the guild's own rule or the default, and the ceilings above it."""
    own = _own(setting, rules)
    caps = [_cap(rule) for rule in ([own] if own else []) + ceilings(rules)]
    default = {"running": defaults.running, "queued": defaults.queued, "cost_day": int(defaults.cost_day)}
    if own is None and setting.name in default:
        caps.insert(0, Cap(setting.name, default[setting.name], "member everywhere"))
    return caps


def _cap(rule: Rule) -> Cap:
    whose: Whose = "member everywhere" if rule.guild == EVERYWHERE else "member here"
    return Cap(rule.setting, int(cast(int, rule.value)), whose, rule)


def _together(name: str, rules: Sequence[Rule]) -> list[Cap]:
    """Return every limit of one `together_` setting."""
    house = sorted((rule for rule in rules if rule.scope == "house"), key=lambda rule: rule.guild == EVERYWHERE)[:1]
    held = [rule for rule in rules if rule.scope in ("channel", "guild")] + house
    return [Cap(name, int(cast(int, rule.value)), _population(rule), rule) for rule in held]


def _population(rule: Rule) -> Whose:
    return "channel" if rule.scope == "channel" else "guild"


def _weighed(setting: Setting, rules: Sequence[Rule]) -> tuple[Value | None, Rule | None]:
    """Return the deciding rule's value within the ceilings, for a setting without usage. None: the default."""
    own = _own(setting, rules)
    value, because = (own.value, own) if own else (None, None)
    for ceiling in ceilings(rules):
        lowered = _lowered(setting, value, ceiling.value)
        if lowered != value:
            value, because = lowered, ceiling
    return value, because


def _lowered(setting: Setting, value: Value | None, ceiling: Value) -> Value | None:
    if value is None or setting.kind == "text":
        return ceiling
    if setting.kind == "texts":
        return tuple(sorted({*_list(value), *_list(ceiling)}))
    if isinstance(value, tuple):
        return _both(value, _list(ceiling))
    if isinstance(value, bool) or isinstance(ceiling, bool):
        return bool(value) or bool(ceiling)  # a ceiling can only forbid, or require the check
    if isinstance(value, int) and isinstance(ceiling, int):
        return min(value, ceiling)
    return value if ceiling == "choice" else ceiling


def _both(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    if ALL in (one, other):
        return one if other == ALL else other
    return tuple(part for part in one if part in other)


def _list(value: Value) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else ()
