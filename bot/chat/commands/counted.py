"""The command tree counted against Discord's limits: rows of figure and goal. Pure.

The limits are those of Discord's documentation ("Application Commands"). Its change log of 3 March 2026 raised menus
from 5 to 15 of each kind; discord.py 2.7 still refuses a sixth.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SUBCOMMAND, GROUP = 1, 2  # kinds of option
SLASH, USER, MESSAGE = 1, 2, 3  # kinds of command
NAME = re.compile(r"[-_'\w]{1,32}")
Part = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A figure and its limit."""

    name: str
    figure: int
    most: int
    unit: str

    @property
    def passed(self) -> bool:
        return self.figure <= self.most

    def plain(self) -> dict[str, object]:
        """Return the row as JSON has it, like the rows of `darkroom bench`."""
        goal = f"≤ {self.most}" if self.most else "= 0"
        return {"name": self.name, "figure": self.figure, "goal": goal, "unit": self.unit, "pass": self.passed}


def rows(tree: Sequence[Part]) -> list[Row]:
    """Return the rows for `tree`, the payload that Discord gets."""
    kinds = Counter(command.get("type", SLASH) for command in tree)
    parts = [part for command in tree for part in _parts(command)]
    named = [part for part in parts if part.get("type") is not None or "options" in part]
    menus = [command for command in tree if command.get("type", SLASH) != SLASH]
    lower = [part for part in named if part not in menus]
    choices = [choice for part in parts for choice in part.get("choices") or ()]
    return [
        Row("slash commands", kinds[SLASH], 100, "commands"),
        Row("menus of a message", kinds[MESSAGE], 15, "commands"),
        Row("menus of a member", kinds[USER], 15, "commands"),
        Row("options of a command", _most(len(part.get("options") or ()) for part in parts), 25, "options"),
        Row("choices of an option", _most(len(part.get("choices") or ()) for part in parts), 25, "choices"),
        Row("levels of subcommands", _most(map(_levels, tree)), 2, "levels"),
        Row("longest name", _most(_longest(part, "name") for part in named), 32, "characters"),
        Row("longest description", _most(_longest(part, "description") for part in named), 100, "characters"),
        Row("longest choice", _most(_longest(choice, "name") for choice in choices), 100, "characters"),
        Row("largest command", _most(map(characters, tree)), 8000, "characters"),
        Row("names that Discord refuses", sum(not _fine(part) for part in lower), 0, "names"),
        Row("names that are there twice", _doubles(tree), 0, "names"),
        Row("missing descriptions", sum(not part.get("description") for part in lower), 0, "parts"),
        Row("required after optional", sum(_disordered(part) for part in parts), 0, "commands"),
        Row("suggestions beside choices", sum(_both(part) for part in parts), 0, "options"),
    ]


def characters(command: Part) -> int:
    """Count a command's characters as Discord does: every name, description and value, in its longest language."""
    return sum(
        _longest(part, "name") + _longest(part, "description") + len(str(part.get("value", "")))
        for part in _parts(command)
    )


def _parts(part: Part) -> Iterator[Part]:
    """Yield a command, its options at every level, and their choices."""
    yield part
    for option in part.get("options") or ():
        yield from _parts(option)
    yield from part.get("choices") or ()


def _longest(part: Part, field: str) -> int:
    """Return the length of a name or description in its longest language."""
    said = [part.get(field) or "", *(part.get(f"{field}_localizations") or {}).values()]
    return max(map(len, said))


def _most(figures: Iterator[int] | map[int]) -> int:
    return max(figures, default=0)


def _levels(part: Part) -> int:
    inner = [option for option in part.get("options") or () if option.get("type") in (SUBCOMMAND, GROUP)]
    return 1 + max(map(_levels, inner)) if inner else 0


def _fine(part: Part) -> bool:
    names = [part["name"], *(part.get("name_localizations") or {}).values()]
    return all(NAME.fullmatch(name) and name == name.lower() for name in names)


def _doubles(tree: Sequence[Part]) -> int:
    found = Counter((command.get("type", SLASH), command["name"]) for command in tree)
    inner = [Counter(o["name"] for o in part.get("options") or ()) for command in tree for part in _parts(command)]
    return sum(count - 1 for counter in (found, *inner) for count in counter.values())


def _disordered(part: Part) -> bool:
    needed = [bool(option.get("required")) for option in part.get("options") or ()]
    return needed != sorted(needed, reverse=True)


def _both(part: Part) -> bool:
    return bool(part.get("autocomplete") and part.get("choices"))
