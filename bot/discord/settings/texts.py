"""Texts about rules, changes and explanations for the admins' cards, in Discord's markdown.

Pure. Lines are short, for a phone. Roles, channels and members are mentions, which every client shows as names. Text
that a person wrote always goes through `escape_discord`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from bot.domain.texts import escape_discord, shorten
from bot.policy.rules.catalogue import SETTINGS
from bot.policy.rules.explanations import Explanation
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
MAX_ENTRY_CHARACTERS = 560  # characters of one change in the history
NO_RULE = "no rule"
NO_LIMIT = UNLIMITED[0]
OPERATOR_SCOPE: Scope = "operator"
STOP_SETTINGS = ("blocked", "closed")  # settings that stop everything
Section = tuple[str, list[str]]  # a heading, and its lines
_PLACEHOLDER = re.compile(r"§(channel|role|user)([0-9]{1,20})§")
_MENTION_PREFIXES = {"channel": "<#", "role": "<@&", "user": "<@"}


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
    return f"{_MENTION_PREFIXES[scope]}{number}>" if scope != "guild" and number.isdigit() else "everyone"


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


def format_rule(rule: Rule) -> str:
    """Return "Running at once: **5**", for those to whom a rule applies."""
    return f"{setting_title(rule.setting)} · **{format_for_card(rule.setting, rule.value)}**"


def format_step(step: RuleStep) -> str:
    """Return one line of a change: "Running at once for @crew: 3 → **5**"."""
    for_whom = "" if step.scope in ("guild", OPERATOR_SCOPE) else f" for {subject_mention(step.scope, step.subject)}"
    lock = "🔒 " if step.scope == OPERATOR_SCOPE else ""
    before, after = format_for_card(step.setting, step.before), format_for_card(step.setting, step.after)
    if isinstance(step.before, tuple) and isinstance(step.after, tuple) and SETTINGS[step.setting].kind == "texts":
        added = len({*step.after} - {*step.before})  # equal counts look alike
        after += f" (+{added}, −{len({*step.before} - {*step.after})})"
    return f"{lock}{setting_title(step.setting)}{for_whom}: {before} → **{after}**"


def format_steps(steps: Sequence[RuleStep]) -> list[str]:
    """Return all lines of a change, in the order of the settings' card."""
    order = {name: position for position, name in enumerate(SETTINGS)}
    return [f"• {format_step(step)}" for step in sorted(steps, key=lambda each: order.get(each.setting, len(order)))]


def describe_change(change: RuleChange) -> str:
    """Return what has just changed: one line for one rule, a count for more."""
    if not change.steps:
        return "Nothing changed: it was so already."
    return f"✅ {format_step(change.steps[0]) if len(change.steps) == 1 else f'{len(change.steps)} rules changed.'}"


def describe_undo(change: RuleChange) -> str:
    """Return what an undo did."""
    return "\n".join([f"↩️ No. {change.undone_change} was taken back:", *fit_lines(format_steps(change.steps), 700)])


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
        verb = "more specific rule goes" if more_specific == 1 else "more specific rules go"
        lines.append(f"-# {more_specific} {verb} first.")
    return lines


def format_change(change: RuleChange) -> str:
    """Return a change in the history: who, what, when, and its first lines."""
    verb = ACTION_VERBS.get(change.action, change.action)
    verb = f"undid no. {change.undone_change}" if change.undone_change else verb
    head = f"**{change.number}.** {escape_discord(change.actor_name, 32)} {verb} · <t:{round(change.changed_at)}:R>"
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


def make_placeholder(kind: str, number: str) -> str:
    """Return a placeholder of a `channel`, `role` or `user` that survives escaping; later it becomes a mention."""
    return f"§{kind}{number}§"


def build_sections(explanations: Sequence[Explanation]) -> list[Section]:
    """Return what holds for a member, in three groups, the fullest limit first; empty groups are left out."""
    limiting = sorted(
        (each for each in explanations if _is_stopping(each) or each.used_share),
        key=lambda each: -1.0 if each.setting in STOP_SETTINGS else 1 - (each.used_share or 0),
    )
    others = [each for each in explanations if each not in limiting]
    by_default = [
        each for each in others if each.rule is None and (each.setting in MEMBER_LIMITS or each.setting == "blocked")
    ]
    groups = {
        "Now": [format_explanation(each) for each in limiting],
        "Set by rules": [format_explanation(each) for each in others if each.rule is not None],
        "By default": [f"-# {_format_value(each)}" for each in by_default],
    }
    return [(heading, lines) for heading, lines in groups.items() if lines]


def format_explanation(explanation: Explanation) -> str:
    """Return a setting's value, and below it why it holds."""
    reason = explanation.sentence.removeprefix(f"{explanation.setting} is {explanation.value}: ")
    reason = _PLACEHOLDER.sub(lambda match: f"{_MENTION_PREFIXES[match[1]]}{match[2]}>", escape_discord(reason, 400))
    stop_mark = "⛔ " if _is_stopping(explanation) or (explanation.used_share or 0) >= 1 else ""
    return f"{stop_mark}{_format_value(explanation, '**')}\n-# {reason}"


def _format_value(explanation: Explanation, emphasis: str = "") -> str:
    """Return "Running at once · 1 of 4"; `emphasis` goes around the value."""
    value = explanation.value
    if explanation.setting == "blocked":
        value = "yes" if value == "on" else "no"
    value = escape_discord(explanation.used or value, 90)
    text = f"{setting_title(explanation.setting)} · {emphasis}{value}{emphasis}"
    if explanation.frees_at is None or not explanation.used_share:
        return text
    return f"{text}, some frees <t:{round(explanation.frees_at)}:R>"


def _is_stopping(explanation: Explanation) -> bool:
    is_set = explanation.rule is not None and explanation.value not in ("off", "not set")
    return explanation.setting in STOP_SETTINGS and is_set
