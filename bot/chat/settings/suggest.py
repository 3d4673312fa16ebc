"""Autocomplete choices for admins: settings with their descriptions, and useful values of each.

Pure but for discord's choices; the caller passes the names of models, channels and servers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from discord.app_commands import Choice

from bot.chat.settings import wording
from bot.rules.catalogue import SETTINGS, Kind, Setting
from bot.rules.presets import PRESETS
from bot.sentences import shortened

OFFERED, LENGTH = 25, 100  # Discord's limits: choices, and characters in one
COSTS = ("5 min", "15 min", "30 min", "1 h", "2 h", "4 h", "12 h", "1 d", "no limit")
USUAL: Mapping[Kind, tuple[str, ...]] = {
    "number": ("1", "2", "3", "5", "10", "20", "50", "100", "250", "500", "1000"),
    "cost": COSTS,
    "seconds": ("0 s", "30 s", "60 s", "2 min", "5 min", "10 min"),
    "size": ("64x64", "256x256", "512x512", "768x768", "1024x1024", "no limit"),
    "switch": ("on", "off"),
}


def settings(typed: str, names: Iterable[str] = tuple(SETTINGS)) -> list[Choice[str]]:
    """Return the settings whose name, title or description contains the typed text."""
    found = [
        Choice(name=shortened(f"{name}: {SETTINGS[name].about}", LENGTH), value=name)
        for name in names
        if typed.casefold() in f"{name} {wording.title(name)} {SETTINGS[name].about}".casefold()
    ]
    return found[:OFFERED]


def values(setting: Setting | None, typed: str, known: Mapping[str, str]) -> list[Choice[str]]:
    """Return values of one setting. `known`: value → label, of models or channels, which no setting lists itself."""
    if setting is None:
        return []
    if setting.kind in ("choices", "names"):
        return _lists(setting.choices or tuple(known), typed)
    offered = known if setting.kind == "channel" else {one: one for one in setting.choices or _usual(setting)}
    return _choices((value, label) for value, label in offered.items() if typed.casefold() in label.casefold())


def presets(typed: str) -> list[Choice[str]]:
    """Return presets by name, with what each is for."""
    shown = ((one.name, f"{one.name}: {one.about}") for one in PRESETS.values())
    return _choices((name, label) for name, label in shown if typed.casefold() in label.casefold())


def named(typed: str, known: Mapping[str, str]) -> list[Choice[str]]:
    """Return those of `known` (value → label) whose label or value contains the typed text."""
    return _choices(
        (value, label) for value, label in known.items() if typed.casefold() in f"{label} {value}".casefold()
    )


def _usual(setting: Setting) -> tuple[str, ...]:
    usual = USUAL.get(setting.kind, ())
    if setting.kind != "number":
        return usual
    return tuple(one for one in usual if setting.least <= int(one) <= setting.most)


def _lists(names: tuple[str, ...], typed: str) -> list[Choice[str]]:
    """Complete the last name of a list: `ddim, eu` → `ddim, euler`."""
    before, _, last = typed.rpartition(",")
    chosen = [part.strip() for part in before.split(",") if part.strip()]
    left = [one for one in names if one not in chosen and last.strip().casefold() in one.casefold()]
    full = [", ".join([*chosen, one]) for one in left]
    whole = [] if chosen else [one for one in ("all", "none") if typed.strip().casefold() in one]
    return _choices((one, one) for one in [*full, *whole])


def _choices(pairs: Iterable[tuple[str, str]]) -> list[Choice[str]]:
    fitting = [(value, label) for value, label in pairs if 0 < len(value) <= LENGTH]
    return [Choice(name=shortened(label, LENGTH), value=value) for value, label in fitting][:OFFERED]
