"""Sentences about rules: who set one, for whom, which one decides. And what the word filter reads of a job. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bot.domain.texts import shorten
from bot.policy.limits import Limits
from bot.policy.rules.catalogue import SETTINGS, EffectiveRules, Setting, UsageLimit
from bot.policy.rules.effective_rules import USAGE_SETTINGS, find_ceilings
from bot.policy.rules.rule import ALL, EVERYWHERE, Rule, RuleChange, RuleStep, RuleValue, Scope
from bot.policy.rules.value_parser import UNLIMITED, format_setting_value
from engine.contract import (
    Change,
    Concept,
    DropImages,
    Recipe,
    SetConcepts,
    SetGuidance,
    SetNegative,
    SplitImage,
    UpscaleTask,
)

DisplayNames = Mapping[str, str]  # a channel's, role's or user's id → how it is shown
NO_NAMES: DisplayNames = {}
SET_BY_SENTENCES: Mapping[Scope, str] = {
    "operator": "This bot's operator set that for this server.",
    "guild": "This server's admins set that for everybody here.",
    "channel": "This server's admins set that for this channel.",
    "role": "This server's admins set that for a role of yours.",
    "user": "This server's admins set that for you.",
}


@dataclass(frozen=True)
class Explanation:
    """The effective value of one setting: `value` as text, `used` so far ("2 of 3"; empty if nothing is counted).

    `rule` decides, None for the bot's default; of several limits it is the one with least left. `sentence` says so, and
    what else applies. `frees_at`: when a part of the usage expires (seconds since 1970), None if unknown. `used_share`:
    of the limit, 1 for all of it; None if nothing is counted.
    """

    setting: str
    value: str
    used: str
    sentence: str
    rule: Rule | None = None
    frees_at: float | None = None
    used_share: float | None = None


def set_by_sentence(rule: Rule | None) -> str:
    """Return who set it, as a sentence at the end of a refusal; empty for the bot's default."""
    if rule is None:
        return ""
    return (
        "This bot's operator set that, over all servers." if rule.guild == EVERYWHERE else SET_BY_SENTENCES[rule.scope]
    )


def format_for_sentence(name: str, value: RuleValue | None) -> str:
    """Return a value for a sentence: "no limit" for None; a long list is cut."""
    if value is None:
        return UNLIMITED[0]
    return shorten(format_setting_value(SETTINGS[name], value).replace("\n", ", "), 200) or "not set"


def describe_subject(scope: Scope, subject: str, names: DisplayNames = NO_NAMES) -> str:
    """Return whom a rule is for."""
    if scope in ("operator", "guild"):
        return "this server"
    name = names.get(subject)
    return f"{scope} {subject}" if name is None else name


def describe_step(step: RuleStep, names: DisplayNames = NO_NAMES) -> str:
    """Return one step of a change as text: "cost_day for @artists: 30 min → 1 h"."""
    before, after = (
        "no rule" if value is None else format_for_sentence(step.setting, value) for value in (step.before, step.after)
    )
    subject_text = (
        "the operator's ceiling" if step.scope == "operator" else describe_subject(step.scope, step.subject, names)
    )
    return f"{step.setting} for {subject_text}: {before} → {after}"


def summarise_change(change: RuleChange, names: DisplayNames = NO_NAMES) -> str:
    """Return a change as one sentence."""
    number = len(change.steps)
    summary = describe_step(change.steps[0], names) if number == 1 else f"{number} rules"
    undone_note = f" (undone by {change.undone_by})" if change.undone_by else ""
    undo_note = f" of change {change.undone_change}" if change.undone_change else ""
    return f"{change.number}: {change.action}{undo_note} by {shorten(change.actor_name, 40)}: {summary}{undone_note}"


def explain_decision(
    setting: Setting,
    effective_rules: EffectiveRules,
    rules: Sequence[Rule],
    defaults: Limits,
    names: DisplayNames = NO_NAMES,
    tightest: UsageLimit | None = None,
) -> str:
    """Return which rule decides a setting, over or beside which others, and what the operator allows.

    `rules` apply to the member; `tightest` is, of limits that apply together, the one with least left.
    """
    deciding_rule = tightest.rule if tightest else effective_rules.deciding_rules.get(setting.name)
    value = tightest.limit if tightest else effective_rules.get(setting.name)
    limit_rules = [limit.rule for limit in effective_rules.limits_of(setting.name)]
    guild_rules = _sort_by_precedence([rule for rule in rules if not _is_operator_rule(rule)])
    joined_rules, joined_text = _joined_lists(setting, deciding_rule, guild_rules, rules, names)
    sentence = (
        f"{setting.name} is {format_for_sentence(setting.name, value)}: "
        f"{joined_text or _who_decides(deciding_rule, setting, defaults, names)}"
    )
    other_rules = [rule for rule in guild_rules if rule not in joined_rules and rule != deciding_rule]
    overridden_rules = [rule for rule in other_rules if rule not in limit_rules]
    also_in_force = [_rule_phrase(rule, names) for rule in other_rules if rule in limit_rules]
    if deciding_rule is not None and None in limit_rules:
        default_limit = min(limit.limit for limit in effective_rules.limits_of(setting.name) if limit.rule is None)
        also_in_force.append(f"this bot's default of {format_for_sentence(setting.name, default_limit)}")
    if overridden_rules:
        sentence += f", over {', and '.join(_rule_phrase(rule, names) for rule in overridden_rules[:3])}"
    if also_in_force:
        sentence += (
            f", as it has the least left; also in force {'is' if len(also_in_force) == 1 else 'are'} "
            f"{' and '.join(also_in_force)}"
        )
    operator_rules = (
        [rule for rule in limit_rules if rule and _is_operator_rule(rule)]
        if tightest
        else find_ceilings([rule for rule in rules if _is_operator_rule(rule)])
    )
    operator_rules = [rule for rule in operator_rules if rule != deciding_rule and rule not in joined_rules]
    return f"{sentence}{''.join(f'; {_ceiling_phrase(rule)}' for rule in operator_rules[:2])}."


def _is_operator_rule(rule: Rule) -> bool:
    return rule.scope == "operator" or rule.guild == EVERYWHERE


def _joined_lists(
    setting: Setting,
    deciding_rule: Rule | None,
    guild_rules: Sequence[Rule],
    rules: Sequence[Rule],
    names: DisplayNames,
) -> tuple[Sequence[Rule], str]:
    """Return lists that add up, and what to say of them; empty if one rule decides alone.

    Lists of several roles add up, and so do forbidden words of a server and of the operator.
    """
    if deciding_rule is not None and deciding_rule.scope == "role" and isinstance(deciding_rule.value, tuple):
        roles = [rule for rule in guild_rules if rule.scope == "role"]
        if deciding_rule.value not in [rule.value for rule in roles]:
            owners = [describe_subject(rule.scope, rule.subject, names) for rule in roles]
            return roles, f"the rules for {' and '.join(owners)} add up"
    if setting.kind == "texts" and len(rules) > 1:
        owners = ["this server", *["this bot's operator" for rule in rules if _is_operator_rule(rule)][:1]]
        return rules, f"the lists of {' and of '.join(owners if guild_rules else owners[1:])} add up"
    return (), ""


def _who_decides(rule: Rule | None, setting: Setting, defaults: Limits, names: DisplayNames) -> str:
    if rule is None:
        return "no rule is set, so this bot's default holds" if _has_default(setting, defaults) else "no rule is set"
    if rule.guild == EVERYWHERE:
        return "this bot's operator decides, for all servers"
    if rule.scope == "operator":
        return "this bot's operator decides, for this server"
    if rule.scope == "guild":
        return "the server's rule decides"
    subject_text = describe_subject(rule.scope, rule.subject, names)
    return (
        f"the {rule.scope}'s rule for {subject_text} decides"
        if rule.subject in names
        else f"the rule for {subject_text} decides"
    )


def _has_default(setting: Setting, defaults: Limits) -> bool:
    return setting.name in USAGE_SETTINGS and hasattr(defaults, setting.name)


def _rule_phrase(rule: Rule, names: DisplayNames) -> str:
    owner = "server" if rule.scope == "guild" else describe_subject(rule.scope, rule.subject, names)
    return (
        f"the {owner}'s {format_for_sentence(rule.setting, rule.value)}"
        if rule.scope == "guild"
        else (f"{owner}'s {format_for_sentence(rule.setting, rule.value)}")
    )


def _ceiling_phrase(rule: Rule) -> str:
    extent = "over all servers" if rule.guild == EVERYWHERE else "here"
    is_list = SETTINGS[rule.setting].kind in ("choices", "names", "choice") and rule.value != ALL
    bound = "only" if is_list else "at most" if SETTINGS[rule.setting].is_numeric else "at least"
    return f"this bot's operator allows {bound} {format_for_sentence(rule.setting, rule.value)} {extent}"


def _sort_by_precedence(rules: list[Rule]) -> list[Rule]:
    order: tuple[Scope, ...] = ("user", "role", "channel", "guild")
    return sorted(rules, key=lambda rule: (order.index(rule.scope), rule.subject))


def member_texts(prompt: str, task: Recipe | UpscaleTask) -> tuple[str, ...]:
    """Return every text of a job that a member wrote, in it or in its parent, each once."""
    if not isinstance(task, Recipe):
        return (prompt,)
    end_prompt = task.interpolation.end_prompt if task.interpolation is not None else None
    texts = (prompt, join_texts(task.concepts), task.negative, end_prompt or "")
    return tuple(dict.fromkeys((*texts, *(text for each in task.amendments for text in amended_texts(each.change)))))


def amended_texts(change: Change) -> tuple[str, ...]:
    """Return the texts that a change brings."""
    match change:
        case SetConcepts():
            return (join_texts(change.concepts),)
        case SetNegative():
            return (change.negative,)
        case SetGuidance() | DropImages() | SplitImage():
            return ()


def join_texts(concepts: Sequence[Concept]) -> str:
    """Return the words of all concepts, as the word filter reads them."""
    return " ".join(concept.text for concept in concepts)
