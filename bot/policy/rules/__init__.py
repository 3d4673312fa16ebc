"""Rules that admins set for members, channels, roles and servers, and the effective rules of a member. Pure.

`catalogue` declares the settings; `rule` is one rule and one change of rules, `value_parser` their values as text.
`effective_rules` resolves the rules of a member, with their precedence; `explanations` has the sentences about them.
`presets` and `planned_changes` set many rules at once: by name, and as YAML.
"""

from __future__ import annotations

from bot.policy.rules.catalogue import SETTINGS, EffectiveRules, Setting, UsageLimit
from bot.policy.rules.effective_rules import resolve
from bot.policy.rules.rule import ALL, EVERYWHERE, SCOPES, Rule, RuleChange, RuleStep, RuleValue, Scope

__all__ = [
    "ALL",
    "EVERYWHERE",
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
