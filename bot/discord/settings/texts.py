"""Texts about rules and changes for the admins' cards, in Discord's markdown.

Pure. Roles, channels and members are mentions, which every client shows as names. Text that a person wrote always goes
through `escape_discord`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from bot.domain.texts import escape_discord, shorten
from bot.policy.rules.catalogue import SETTINGS
from bot.policy.rules.rule import SCOPES, Rule, RuleChange, RuleStep, RuleValue, Scope
from bot.policy.rules.value_parser import UNLIMITED, format_setting_value
from bot.prompt import format_default_cost

if TYPE_CHECKING:
    from engine.contract import ModelProfile

MAX_LISTED_MODELS = 8

MEMBER_LIMITS = tuple(
    name for name, definition in SETTINGS.items() if "user" in definition.scopes and name != "blocked"
)
SHARED_LIMITS = tuple(name for name in SETTINGS if name.startswith("together_"))
SWITCHES = ("check", "previews", "long_ping", "reports")
ACTION_VERBS: Mapping[str, str] = MappingProxyType(
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
MAX_VALUE_CHARACTERS = 90
NO_RULE = "no rule"
NO_LIMIT = UNLIMITED[0]
MAX_ENTRY_CHARACTERS = 560  # characters of one change in the history
OPERATOR_SCOPE: Scope = "operator"


def setting_title(setting: str) -> str:
    """Return a setting's title on a card."""
    return SETTINGS[setting].title if setting in SETTINGS else setting.replace("_", " ")


def shared_limit_title(setting: str) -> str:
    """Return its title under the heading "All together"."""
    short_title = setting_title(setting).removeprefix("All together: ")
    return short_title[:1].upper() + short_title[1:]


def subject_mention(scope: Scope, subject: str) -> str:
    """Return for whom a rule holds."""
    number = subject.rpartition(":")[2]
    if scope == OPERATOR_SCOPE:
        return "the whole server 🔒"
    if scope == "guild" or not number.isdigit():
        return "everyone"
    return {"channel": f"<#{number}>", "role": f"<@&{number}>", "user": f"<@{number}>"}[scope]


def format_for_card(setting: str, value: RuleValue | None) -> str:
    """Return a value, as short as possible for a phone."""
    if value is None:
        return NO_RULE
    definition = SETTINGS.get(setting)
    if definition is None:
        return escape_discord(str(value), MAX_VALUE_CHARACTERS)
    if definition.kind == "texts" and isinstance(value, tuple):
        return f"{len(value)} {definition.unit if len(value) != 1 else definition.unit.removesuffix('s')}"
    if definition.kind == "channel":
        return f"<#{value}>"
    return escape_discord(format_setting_value(definition, value), MAX_VALUE_CHARACTERS)


def format_for_field(setting: str, value: RuleValue) -> str:
    """Return a value without markdown, for a select or a field."""
    definition = SETTINGS.get(setting)
    return shorten(str(value) if definition is None else format_setting_value(definition, value), MAX_VALUE_CHARACTERS)


def format_step(step: RuleStep) -> str:
    """Return one line of a change: "Running at once for @crew: 3 → **5**"."""
    for_whom = "" if step.scope in ("guild", OPERATOR_SCOPE) else f" for {subject_mention(step.scope, step.subject)}"
    lock = "🔒 " if step.scope == OPERATOR_SCOPE else ""
    return (
        f"{lock}{setting_title(step.setting)}{for_whom}: {format_for_card(step.setting, step.before)} → "
        f"**{_format_after(step)}**"
    )


def _format_after(step: RuleStep) -> str:
    """Return the new value; of a list also how many were added and removed, since equal counts look alike."""
    if isinstance(step.before, tuple) and isinstance(step.after, tuple) and SETTINGS[step.setting].kind == "texts":
        added_count = len({*step.after} - {*step.before})
        removed_count = len({*step.before} - {*step.after})
        return f"{format_for_card(step.setting, step.after)} (+{added_count}, −{removed_count})"
    return format_for_card(step.setting, step.after)


def format_steps(steps: Sequence[RuleStep]) -> list[str]:
    """Return all lines of a change, in the order of the settings' card."""
    order = {name: position for position, name in enumerate(SETTINGS)}
    return [
        f"• {format_step(step)}"
        for step in sorted(steps, key=lambda sorted_step: order.get(sorted_step.setting, len(order)))
    ]


def describe_change(change: RuleChange) -> str:
    """Return what has just changed: one line for one rule, a count for more."""
    if not change.steps:
        return "Nothing changed: it was so already."
    if len(change.steps) == 1:
        return f"✅ {format_step(change.steps[0])}"
    return f"✅ {len(change.steps)} rules changed."


def describe_overrides(step: RuleStep, rules: Sequence[Rule]) -> list[str]:
    """Return what holds in spite of a new rule: ceilings above it, and more specific rules."""
    same_setting = [rule for rule in rules if rule.setting == step.setting]
    ceilings = [rule for rule in same_setting if rule.scope == OPERATOR_SCOPE and step.scope != OPERATOR_SCOPE]
    more_specific = sum(SCOPES.index(rule.scope) > SCOPES.index(step.scope) for rule in same_setting)
    lines = [
        f"-# 🔒 This bot's operator allows {format_for_card(rule.setting, rule.value)}: that still holds."
        for rule in ceilings
    ]
    if more_specific:
        lines.append(
            f"-# {more_specific} {'more specific rule goes' if more_specific == 1 else 'more specific rules go'} first."
        )
    return lines


def format_entry(change: RuleChange) -> str:
    """Return a change in the history: who, what, when, and its first lines."""
    actor = escape_discord(change.actor_name, 32)
    verb = (
        f"undid no. {change.undone_change}" if change.undone_change else ACTION_VERBS.get(change.action, change.action)
    )
    head = f"**{change.number}.** {actor} {verb} · <t:{round(change.changed_at)}:R>"
    undone_note = [f"-# taken back by no. {change.undone_by}"] if change.undone_by else []
    return "\n".join([*fit_lines([head, *format_steps(change.steps)], MAX_ENTRY_CHARACTERS, 4), *undone_note])


def fit_lines(lines: Sequence[str], limit: int, max_lines: int = 1000) -> list[str]:
    """Return the whole lines that fit into `limit` characters, at most `max_lines`, and how many did not."""
    fitting_lines = list[str]()
    used_characters = 0
    for number, line in enumerate(lines):
        if number >= max_lines or used_characters + len(line) + 1 > limit - 24:
            return [*fitting_lines, f"-# … and {len(lines) - number} more"]
        fitting_lines.append(line)
        used_characters += len(line) + 1
    return fitting_lines


def describe_model_costs(model_profiles: Sequence[ModelProfile]) -> list[str]:
    """Return a line for each model: what a picture with its defaults costs, in device time."""
    lines = [
        f"{escape_discord(each.name, 64)} · {format_default_cost(each) or 'needs a picture to begin with'}"
        + ("" if each.quantization == "none" else f", {each.quantization}")
        for each in model_profiles[:MAX_LISTED_MODELS]
    ]
    more = len(model_profiles) - MAX_LISTED_MODELS
    return [*lines, f"and {more} more"] if more > 0 else lines
