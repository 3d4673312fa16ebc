"""Presets: named sets of values for a whole server. Other rules stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.policy.rules.catalogue import SETTINGS
from bot.policy.rules.rule import RuleKey, RuleValue
from bot.policy.rules.value_parser import nearest_name, parse_value


@dataclass(frozen=True)
class Preset:
    """`values` by setting, as an admin would type them."""

    name: str
    description: str
    values: Mapping[str, str]


_PRESETS = (
    Preset(
        "small server",
        "among friends: generous limits for each member, none for the whole server",
        {"running": "3", "queued": "20", "cost_day": "2 h", "results": "choice", "speeds": "all"},
    ),
    Preset(
        "large server",
        "many strangers: low limits for each member and the whole server, relaxed beyond them",
        {
            "running": "1",
            "queued": "3",
            "cost_day": "15 min",
            "cost_month": "3 h",
            "steps": "250",
            "together_running": "20",
            "together_queued": "300",
            "together_cost_day": "12 h",
            "results": "choice",
            "speeds": "all",
        },
    ),
    Preset(
        "contest",
        "the same for everybody: one public job at a time, all with the same step limit",
        {
            "running": "1",
            "queued": "1",
            "cost_day": "30 min",
            "steps": "100",
            "count": "4",
            "results": "public",
            "speeds": "fast",
            "together_queued": "300",
        },
    ),
)
PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _PRESETS})


def find_preset(name: str) -> Preset:
    """Return the preset of that name. Raises `UserError` (422), naming the nearest one."""
    preset = PRESETS.get(" ".join(name.casefold().replace("_", " ").replace("-", " ").split()))
    if preset is None:
        raise UserError(
            f"There is no preset “{shorten(name, 40)}”; the nearest is {nearest_name(name, tuple(PRESETS))}."
        )
    return preset


def preset_rules(preset: Preset) -> dict[RuleKey, RuleValue]:
    """Return its values as rules for the whole server."""
    return {("guild", "", name): parse_value(SETTINGS[name], text) for name, text in preset.values.items()}
