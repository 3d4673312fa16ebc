"""Effective rules of one member in one place: which rules apply, their precedence, and which one decides. Pure.

Precedence, for each setting alone: a rule for the user, else for one of their roles (of several the most generous; but
if one of them is `blocked: on`, that counts), else for the channel, else for the server, else this bot's default. Above
all of them are the operator's ceilings: for the server (scope "operator"), and everywhere (guild "*", where a rule for
a user replaces the general one). A ceiling can only restrict.

Usage is counted where the deciding limit applies: in the server for its own rules, in all servers for the default and
for ceilings everywhere. Limits that begin with `together_` apply side by side: the channel's counts the jobs of that
channel, the server's and its ceiling count the whole server. A ceiling for this server replaces the one that applies
everywhere, which gives each server the same.

Limits on running jobs of all members, by server and channel, for the dispatcher. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import cast

from bot.domain.dto import Member
from bot.policy.limits import Limits
from bot.policy.rules.catalogue import (
    ADDED_DEFAULTS,
    DEFAULT_RULES,
    SETTINGS,
    EffectiveRules,
    Setting,
    UsageLimit,
    UsageScope,
)
from bot.policy.rules.rule import ALL, EVERYWHERE, Rule, RuleValue, Scope

USAGE_SETTINGS = ("running", "queued", "cost_day", "cost_month", "relaxed_day")


def resolve(rules: Iterable[Rule], member: Member, defaults: Limits) -> EffectiveRules:
    """Return the effective rules of `member` where they are. `rules`: those of their guild and those for every guild;
    others are ignored.
    """
    applicable_rules = sorted(
        (rule for rule in rules if _is_valid(rule) and is_applicable(rule, member)), key=_sort_key
    )
    rules_by_setting: dict[str, list[Rule]] = {}
    for rule in applicable_rules:
        rules_by_setting.setdefault(rule.setting, []).append(rule)
    values: dict[str, RuleValue | None] = {}
    deciding_rules: dict[str, Rule | None] = {}
    usage_limits: list[UsageLimit] = []
    for name, setting in SETTINGS.items():
        setting_rules = rules_by_setting.get(name, [])
        if name in USAGE_SETTINGS or name.startswith("together_"):
            limits = (
                _shared_limits(name, setting_rules)
                if name.startswith("together_")
                else _member_limits(setting, setting_rules, defaults)
            )
            usage_limits += [limit for limit in limits if limit.limit < setting.maximum]
            lowest = min(limits, key=lambda limit: limit.limit, default=None)
            values[name], deciding_rules[name] = (lowest.limit, lowest.rule) if lowest else (None, None)
        else:
            values[name], deciding_rules[name] = _restricted_value(setting, setting_rules)
    effective_values = {name: value for name, value in values.items() if value is not None}
    added = {name: effective_values.pop(name, default) for name, default in ADDED_DEFAULTS.items()}
    return EffectiveRules(
        **effective_values,  # pyright: ignore[reportArgumentType]
        added=cast("Mapping[str, int]", added),
        usage_limits=tuple(usage_limits),
        deciding_rules=MappingProxyType(deciding_rules),
    )


def _is_valid(rule: Rule) -> bool:
    setting = SETTINGS.get(rule.setting)
    return setting is not None and rule.scope in setting.scopes and setting.is_valid(rule.value)


def _sort_key(rule: Rule) -> tuple[bool, int, str]:
    """Sort in a fixed order, so that of equal limits the nearest one decides."""
    return rule.guild == EVERYWHERE, ("user", "role", "channel", "guild", "operator").index(rule.scope), rule.subject


def is_applicable(rule: Rule, member: Member) -> bool:
    """Return whether a rule is for this member where they are."""
    if rule.guild == EVERYWHERE:
        return rule.scope == "operator" or (rule.scope == "user" and rule.subject == member.id)
    if rule.guild != member.guild:
        return False
    subjects: Mapping[Scope, Sequence[str]] = {
        "operator": ("",),
        "guild": ("",),
        "channel": (member.channel,),
        "role": member.roles,
        "user": (member.id,),
    }
    return rule.subject in subjects[rule.scope]


def _nearest_own_rule(setting: Setting, rules: Sequence[Rule]) -> Rule | None:
    """Return the guild's own rule that decides: the nearest to the member."""
    for scope in ("user", "role", "channel", "guild"):
        nearest_rules = [rule for rule in rules if rule.scope == scope and rule.guild != EVERYWHERE]
        if nearest_rules:
            return most_generous_rule(setting, nearest_rules) if scope == "role" else nearest_rules[0]
    return None


def find_ceilings(rules: Sequence[Rule]) -> list[Rule]:
    """Return the operator's ceilings: for this server, and everywhere (there, for the user before the general one)."""
    guild_ceilings = [rule for rule in rules if rule.scope == "operator" and rule.guild != EVERYWHERE]
    global_ceilings = [rule for rule in rules if rule.guild == EVERYWHERE]
    return guild_ceilings + sorted(global_ceilings, key=lambda rule: rule.scope == "operator")[:1]


def most_generous_rule(setting: Setting, rules: Sequence[Rule]) -> Rule:
    """Return the most generous of several roles' rules. Lists are joined; a block always wins."""

    def generosity(rule: Rule) -> tuple[int, str]:
        value = rule.value
        if isinstance(value, tuple):
            return (10_000 if value == ALL else len(value)), rule.subject
        if isinstance(value, bool):
            return int(value), rule.subject
        if isinstance(value, int):
            return value, rule.subject
        return ("private", "public", "choice").index(value) if setting.name == "results" else 0, rule.subject

    best_rule = max(rules, key=generosity)
    lists = [rule.value for rule in rules if isinstance(rule.value, tuple)]
    if len(lists) < 2 or best_rule.value == ALL:
        return best_rule
    joined_values = tuple(sorted({entry for value in lists for entry in value}))
    return Rule(best_rule.scope, best_rule.subject, best_rule.setting, joined_values, best_rule.guild)


def _member_limits(setting: Setting, rules: Sequence[Rule], defaults: Limits) -> list[UsageLimit]:
    """Return the guild's own rule or the default, and the ceilings above it."""
    own_rule = _nearest_own_rule(setting, rules)
    limits = [_to_limit(rule) for rule in ([own_rule] if own_rule else []) + find_ceilings(rules)]
    default_limits = {
        "running": defaults.running,
        "queued": defaults.queued,
        "cost_day": int(defaults.cost_day),
        "relaxed_day": int(defaults.relaxed_day),
    }
    if own_rule is None and setting.name in default_limits:
        limits.insert(0, UsageLimit(setting.name, default_limits[setting.name], "member everywhere"))
    return limits


def _to_limit(rule: Rule) -> UsageLimit:
    usage_scope: UsageScope = "member everywhere" if rule.guild == EVERYWHERE else "member here"
    return UsageLimit(rule.setting, int(cast(int, rule.value)), usage_scope, rule)


def _shared_limits(name: str, rules: Sequence[Rule]) -> list[UsageLimit]:
    """Return every limit of one `together_` setting."""
    operator_rules = sorted(
        (rule for rule in rules if rule.scope == "operator"), key=lambda rule: rule.guild == EVERYWHERE
    )[:1]
    limiting_rules = [rule for rule in rules if rule.scope in ("channel", "guild")] + operator_rules
    scopes: Mapping[Scope, UsageScope] = {"channel": "channel"}
    return [
        UsageLimit(name, int(cast(int, rule.value)), scopes.get(rule.scope, "guild"), rule) for rule in limiting_rules
    ]


def _restricted_value(setting: Setting, rules: Sequence[Rule]) -> tuple[RuleValue | None, Rule | None]:
    """Return the deciding rule's value within the ceilings, for a setting without usage. None: the default."""
    own_rule = _nearest_own_rule(setting, rules)
    value, deciding_rule = (own_rule.value, own_rule) if own_rule else (None, None)
    for ceiling in find_ceilings(rules):
        if (
            value is None
            and setting.is_numeric
            and cast(int, ceiling.value) > cast(int, DEFAULT_RULES.get(setting.name))
        ):
            continue  # it leaves the default
        restricted_value = _restrict(setting, value, ceiling.value)
        if restricted_value != value:
            value = restricted_value
            deciding_rule = ceiling
    return value, deciding_rule


def _restrict(setting: Setting, value: RuleValue | None, ceiling: RuleValue) -> RuleValue | None:
    if value is None or setting.kind == "text":
        return ceiling
    if setting.kind == "texts":
        return tuple(sorted({*_as_texts(value), *_as_texts(ceiling)}))
    if isinstance(value, tuple):
        return _intersect(value, _as_texts(ceiling))
    if isinstance(value, bool) or isinstance(ceiling, bool):
        return bool(value) or bool(ceiling)  # a ceiling can only forbid, or require the check
    if isinstance(value, int) and isinstance(ceiling, int):
        return min(value, ceiling)
    return value if ceiling == "choice" else ceiling


def _intersect(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    if ALL in (first, second):
        return first if second == ALL else second
    return tuple(entry for entry in first if entry in second)


def _as_texts(value: RuleValue) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else ()


LIMIT_SETTINGS = ("together_running", "closed")


@dataclass(frozen=True)
class RunningLimits:
    """Limits by guild.

    `guild_limits`: by the admins of a server. `ceilings`: by the operator for a server ("*": for each without its own).
    `channel_limits`: by guild and channel. `closed_guilds`: closed servers ("*": all), whose waiting jobs are not
    dispatched.
    """

    guild_limits: Mapping[str, int] = field(default_factory=dict[str, int])
    ceilings: Mapping[str, int] = field(default_factory=dict[str, int])
    channel_limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    closed_guilds: frozenset[str] = frozenset()

    @classmethod
    def from_rules(cls, rules: Iterable[Rule]) -> RunningLimits:
        """Build it from rules of any guild; only those of `LIMIT_SETTINGS` are allowed."""
        guild_limits = dict[str, int]()
        ceilings = dict[str, int]()
        channel_limits = dict[str, dict[str, int]]()
        closed_guilds: set[str] = set()
        for rule in rules:
            if rule.setting == "closed":
                closed_guilds.add(rule.guild)
            if not isinstance(rule.value, int):
                continue
            if rule.scope == "operator":
                ceilings[rule.guild] = rule.value
            elif rule.scope == "channel":
                channel_limits.setdefault(rule.guild, {})[rule.subject] = rule.value
            else:
                guild_limits[rule.guild] = rule.value
        return cls(guild_limits, ceilings, channel_limits, frozenset(closed_guilds))

    def limit_of(self, guild: str) -> int | None:
        """Return the limit of a server; None if it has none."""
        if {guild, EVERYWHERE} & self.closed_guilds:
            return 0
        ceiling = self.ceilings.get(guild, self.ceilings.get(EVERYWHERE))
        limits = [limit for limit in (self.guild_limits.get(guild), ceiling) if limit is not None]
        return min(limits, default=None)

    def channel_limits_of(self, guild: str) -> Mapping[str, int]:
        """Return the limits of a server's channels."""
        return self.channel_limits.get(guild, {})
