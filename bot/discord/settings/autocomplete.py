"""Autocomplete choices for admins: settings with their descriptions, and useful values of each.

Pure but for discord's choices; the caller passes the names of models, channels and servers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from discord.app_commands import Choice

from bot.discord.settings import texts
from bot.domain.texts import shorten
from bot.policy.rules.catalogue import SETTINGS, Setting, SettingKind
from bot.policy.rules.presets import PRESETS

# Discord's limits: choices, and characters in one
MAX_CHOICES = 25
CHOICE_LENGTH = 100
COSTS = ("5 min", "15 min", "30 min", "1 h", "2 h", "4 h", "12 h", "1 d", "no limit")
COMMON_VALUES: Mapping[SettingKind, tuple[str, ...]] = {
    "number": ("1", "2", "3", "5", "10", "20", "50", "100", "250", "500", "1000"),
    "cost": COSTS,
    "seconds": ("0 s", "30 s", "60 s", "2 min", "5 min", "10 min"),
    "size": ("64x64", "256x256", "512x512", "768x768", "1024x1024", "no limit"),
    "switch": ("on", "off"),
}


def suggest_settings(current: str, names: Iterable[str] = tuple(SETTINGS)) -> list[Choice[str]]:
    """Return the settings whose name, title or description contains the typed text."""
    choices = [
        Choice(name=shorten(f"{name}: {SETTINGS[name].description}", CHOICE_LENGTH), value=name)
        for name in names
        if current.casefold() in f"{name} {texts.setting_title(name)} {SETTINGS[name].description}".casefold()
    ]
    return choices[:MAX_CHOICES]


def suggest_values(setting: Setting | None, current: str, live_values: Mapping[str, str]) -> list[Choice[str]]:
    """Return values of one setting. `live_values`: value → label, of models or channels, which no setting lists."""
    if setting is None:
        return []
    if setting.kind in ("choices", "names"):
        return _complete_list(setting.choices or tuple(live_values), current)
    labels = (
        live_values
        if setting.kind == "channel"
        else {choice: choice for choice in setting.choices or _common_values(setting)}
    )
    return _to_choices((value, label) for value, label in labels.items() if current.casefold() in label.casefold())


def suggest_presets(current: str) -> list[Choice[str]]:
    """Return presets by name, with what each is for."""
    labels = ((preset.name, f"{preset.name}: {preset.description}") for preset in PRESETS.values())
    return _to_choices((name, label) for name, label in labels if current.casefold() in label.casefold())


def suggest_named(current: str, labels: Mapping[str, str]) -> list[Choice[str]]:
    """Return those of `labels` (value → label) whose label or value contains the typed text."""
    return _to_choices(
        (value, label) for value, label in labels.items() if current.casefold() in f"{label} {value}".casefold()
    )


def _common_values(setting: Setting) -> tuple[str, ...]:
    values = COMMON_VALUES.get(setting.kind, ())
    if setting.kind != "number":
        return values
    return tuple(value for value in values if setting.minimum <= int(value) <= setting.maximum)


def _complete_list(names: tuple[str, ...], current: str) -> list[Choice[str]]:
    """Complete the last name of a list: `ddim, eu` → `ddim, euler`."""
    earlier_names, _, last_name = current.rpartition(",")
    chosen_names = [part.strip() for part in earlier_names.split(",") if part.strip()]
    remaining = [name for name in names if name not in chosen_names and last_name.strip().casefold() in name.casefold()]
    completions = [", ".join([*chosen_names, name]) for name in remaining]
    keywords = [] if chosen_names else [name for name in ("all", "none") if current.strip().casefold() in name]
    return _to_choices((name, name) for name in [*completions, *keywords])


def _to_choices(pairs: Iterable[tuple[str, str]]) -> list[Choice[str]]:
    fitting_pairs = [(value, label) for value, label in pairs if 0 < len(value) <= CHOICE_LENGTH]
    return [Choice(name=shorten(label, CHOICE_LENGTH), value=value) for value, label in fitting_pairs][:MAX_CHOICES]
