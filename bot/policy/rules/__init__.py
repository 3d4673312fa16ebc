"""Rules that admins set for members, channels, roles and servers, and the effective rules of a member. Pure.

`rule` has one rule and one change of rules, `catalogue` the settings, `value_parser` their values as text.
`effective_rules` resolves the rules of a member, with their precedence; `explanations` has the sentences about them.
`presets` and `yaml_io` set many rules at once: by name, and as YAML.
"""

from __future__ import annotations

from bot.policy.rules.catalogue import LIMITABLE_COMMANDS, SETTINGS, Setting
from bot.policy.rules.effective_rules import EffectiveRules, UsageLimit, resolve
from bot.policy.rules.rule import ALL, EVERYWHERE, SCOPES, Rule, RuleChange, RuleStep, RuleValue, Scope

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
