"""Rules that admins set for members, channels, roles and servers, and what follows from them. Pure.

`rule` is one rule and one change of rules, `catalogue` the settings, `reading` their values as text, `terms` the
effective rules of a member (with the precedence), `telling` the sentences about them, `presets` and `sheet` many rules
at once: by name, and as YAML.
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
