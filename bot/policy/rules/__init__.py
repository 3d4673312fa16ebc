"""Rules that admins set for members, channels, roles and servers, and the effective rules of a member. Pure.

`rule` has one rule, one change of rules and the settings, `value_parser` their values as text.
`effective_rules` resolves the rules of a member, with their precedence; `explanations` has the sentences about them.
`presets` and `planned_changes` set many rules at once: by name, and as YAML.
"""

from __future__ import annotations

from bot.policy.rules.effective_rules import EffectiveRules, UsageLimit, resolve
from bot.policy.rules.rule import (
    ALL,
    EVERYWHERE,
    LIMITABLE_COMMANDS,
    SCOPES,
    SETTINGS,
    Rule,
    RuleChange,
    RuleStep,
    RuleValue,
    Scope,
    Setting,
)

__all__ = [
    "ALL",
    "EVERYWHERE",
    "LIMITABLE_COMMANDS",
    "SCOPES",
    "SETTINGS",
    "EffectiveRules",
    "Rule",
    "RuleChange",
    "RuleStep",
    "RuleValue",
    "Scope",
    "Setting",
    "UsageLimit",
    "resolve",
]
