"""Computes the steps of a change from the current rules of a guild and the requested ones. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.policy.rules.catalogue import SETTINGS, Setting
from bot.policy.rules.explanations import format_for_sentence
from bot.policy.rules.rule import EVERYWHERE, RuleChange, RuleKey, RuleStep, RuleValue, Scope, check_subject, diff_rules
from bot.policy.rules.yaml_io import EXCLUDED_SETTINGS

RulesByKey = Mapping[RuleKey, RuleValue]
MAX_RULES = 1000  # of one guild
MAX_CHARACTERS = 200_000  # characters of all of them: each request reads them, and a change may record them all


def check_scope(setting: Setting, guild: str, scope: Scope, subject: str) -> None:
    """Raise `UserError` (422) if a setting cannot be set for that scope and subject."""
    allowed_scopes = tuple(
        other_scope for other_scope in setting.scopes if guild != EVERYWHERE or other_scope in ("operator", "user")
    )
    if scope not in allowed_scopes:
        offered_scopes = [
            name for name in allowed_scopes if name != "operator" or guild == EVERYWHERE
        ]  # ceilings: the operator alone
        scope_names = (
            ", ".join("server" if name == "guild" else name for name in offered_scopes) or "one server at a time"
        )
        raise UserError(f"{setting.name} cannot be set for {_scope_with_article(scope)}; it can for: {scope_names}.")
    if (scope in ("operator", "guild")) != (not subject):
        raise UserError(f"A rule for {_scope_with_article(scope)} {'takes no id' if subject else 'needs its id'}.")
    if subject:
        check_subject(guild, scope, subject)


def _scope_with_article(scope: Scope) -> str:
    return {"operator": "a ceiling", "guild": "a server"}.get(scope, f"a {scope}")


def plan_rule(current_rules: RulesByKey, key: RuleKey, value: RuleValue | None) -> tuple[RuleStep, ...]:
    """Return the steps that set one rule or (None) unset it. Raises `UserError` (422) if nothing changes."""
    new_rules = {**current_rules, key: value}
    steps = diff_rules(current_rules, {key: value for key, value in new_rules.items() if value is not None})
    if not steps and value is None:
        raise UserError(f"There is no such rule: {key[2]} is not set there.")
    if not steps:
        raise UserError(f"{key[2]} is {format_for_sentence(key[2], value)} there already.")
    return _check_size(current_rules, steps)


def plan_rules(current_rules: RulesByKey, values: Mapping[RuleKey, RuleValue | None]) -> tuple[RuleStep, ...]:
    """Return the steps that set or (None) unset several rules; others stay. Raises `UserError` if nothing changes."""
    new_rules = {key: value for key, value in {**current_rules, **values}.items() if value is not None}
    steps = diff_rules(current_rules, new_rules)
    if not steps:
        raise UserError("All of that is set already.")
    return _check_size(current_rules, steps)


def plan_reopening(current_rules: RulesByKey, *, is_operator: bool) -> tuple[RuleStep, ...]:
    """Return the steps that remove `closed`. Raises `UserError` if it is open (422) or the operator closed it (403)."""
    operator_key = ("operator", "", "closed")
    guild_key = ("guild", "", "closed")
    if operator_key in current_rules and not is_operator:
        raise UserError("This bot's operator closed this server: only they can open it.", 403)
    if operator_key not in current_rules and guild_key not in current_rules:
        raise UserError("It is open already.")
    return diff_rules(
        current_rules, {key: value for key, value in current_rules.items() if key not in (operator_key, guild_key)}
    )


def plan_import(current_rules: RulesByKey, values: RulesByKey) -> tuple[RuleStep, ...]:
    """Return the steps that replace all rules that a YAML file can hold. Raises `UserError` if nothing changes."""
    unaffected_rules = {
        key: value for key, value in current_rules.items() if key[0] == "operator" or key[2] in EXCLUDED_SETTINGS
    }
    steps = diff_rules(current_rules, {**unaffected_rules, **values})
    if not steps:
        raise UserError("The rules are the same already: nothing to import.")
    return _check_size(current_rules, steps)


def plan_undo(current_rules: RulesByKey, change: RuleChange, later_change: int | None) -> tuple[RuleStep, ...]:
    """Return the steps that undo a change. Raises `UserError` if it is undone, or if one of its rules was set again.

    `later_change`: the newest later change of one of its rules, for the sentence.
    """
    if change.undone_by is not None:
        raise UserError(f"Change {change.number} is undone already, by change {change.undone_by}.")
    for step in change.steps:
        if current_rules.get(step.key) != step.after:
            change_note = f" by change {later_change}" if later_change else ""
            raise UserError(
                f"Change {change.number} cannot be undone: {step.setting} was changed again since{change_note}. "
                f"Undo that first, or set it by hand."
            )
    return _check_size(current_rules, tuple(step.inverse() for step in reversed(change.steps)))


def closed_value(reason: str, name: str) -> str:
    """Return the value of `closed`: the reason, and who closed it."""
    max_length = SETTINGS["closed"].maximum
    signature = f" (closed by {shorten(name, 60)})"
    return (shorten(reason, max_length - len(signature)).rstrip(".") or "no reason given") + signature


def _check_size(current_rules: RulesByKey, steps: tuple[RuleStep, ...]) -> tuple[RuleStep, ...]:
    """Return the steps. Raises `UserError` if they bring the admins' rules over a server's limits of number or length.

    Steps that remove rules always pass. So do ceilings and closing: a full server cannot keep them out.
    """
    admin_steps = [step for step in steps if step.scope != "operator" and step.setting not in EXCLUDED_SETTINGS]
    added_rules = sum((step.before is None) - (step.after is None) for step in admin_steps)
    admin_rules = [
        (key, value) for key, value in current_rules.items() if key[0] != "operator" and key[2] not in EXCLUDED_SETTINGS
    ]
    if added_rules > 0 and len(admin_rules) + added_rules > MAX_RULES:
        raise UserError(
            f"A server has at most {MAX_RULES} rules; it has {len(admin_rules)}, and these are {added_rules} more."
        )
    added_characters = sum(
        _rule_length(step.key, step.after) - _rule_length(step.key, step.before) for step in admin_steps
    )
    total_characters = sum(_rule_length(key, value) for key, value in admin_rules)
    if added_characters > 0 and total_characters + added_characters > MAX_CHARACTERS:
        raise UserError(
            f"All rules of a server have at most {MAX_CHARACTERS:,} characters together; these would make them "
            f"{total_characters + added_characters:,}. Shorten or remove some lists first."
        )
    return steps


def _rule_length(key: RuleKey, value: RuleValue | None) -> int:
    """Return the characters of a rule; 0 for none."""
    if value is None:
        return 0
    return sum(map(len, key)) + sum(map(len, value if isinstance(value, tuple) else (str(value),)))
