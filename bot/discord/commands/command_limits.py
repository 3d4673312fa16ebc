"""Counts the command tree against Discord's limits: one row for each limit. Pure.

The limits are those of Discord's documentation ("Application Commands"). Its change log of 3 March 2026 raised menus
from 5 to 15 of each kind; discord.py 2.7 still refuses a sixth.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# kinds of option
SUBCOMMAND = 1
GROUP = 2
# kinds of command
SLASH = 1
USER = 2
MESSAGE = 3
NAME_PATTERN = re.compile(r"[-_'\w]{1,32}")
PayloadPart = Mapping[str, Any]


@dataclass(frozen=True)
class LimitCheck:
    """A figure and its limit."""

    name: str
    value: int
    limit: int
    unit: str

    @property
    def is_within(self) -> bool:
        return self.value <= self.limit

    def to_json(self) -> dict[str, object]:
        """Return the row as JSON has it, like the rows of `darkroom bench`."""
        goal = f"≤ {self.limit}" if self.limit else "= 0"
        return {"name": self.name, "figure": self.value, "goal": goal, "unit": self.unit, "pass": self.is_within}


def check_limits(tree: Sequence[PayloadPart]) -> list[LimitCheck]:
    """Return the rows for `tree`, the payload that Discord gets."""
    kinds = Counter(command.get("type", SLASH) for command in tree)
    parts = [part for command in tree for part in _iterate_parts(command)]
    named_parts = [part for part in parts if part.get("type") is not None or "options" in part]
    menus = [command for command in tree if command.get("type", SLASH) != SLASH]
    slash_parts = [part for part in named_parts if part not in menus]
    choices = [choice for part in parts for choice in part.get("choices") or ()]
    return [
        LimitCheck("slash commands", kinds[SLASH], 100, "commands"),
        LimitCheck("menus of a message", kinds[MESSAGE], 15, "commands"),
        LimitCheck("menus of a member", kinds[USER], 15, "commands"),
        LimitCheck("options of a command", _max_of(len(part.get("options") or ()) for part in parts), 25, "options"),
        LimitCheck("choices of an option", _max_of(len(part.get("choices") or ()) for part in parts), 25, "choices"),
        LimitCheck("levels of subcommands", _max_of(map(_subcommand_depth, tree)), 2, "levels"),
        LimitCheck("longest name", _max_of(_max_length(part, "name") for part in named_parts), 32, "characters"),
        LimitCheck(
            "longest description", _max_of(_max_length(part, "description") for part in named_parts), 100, "characters"
        ),
        LimitCheck("longest choice", _max_of(_max_length(choice, "name") for choice in choices), 100, "characters"),
        LimitCheck("largest command", _max_of(map(count_characters, tree)), 8000, "characters"),
        LimitCheck("names that Discord refuses", sum(not _is_valid_name(part) for part in slash_parts), 0, "names"),
        LimitCheck("names that are there twice", _count_duplicates(tree), 0, "names"),
        LimitCheck("missing descriptions", sum(not part.get("description") for part in slash_parts), 0, "parts"),
        LimitCheck("required after optional", sum(_is_misordered(part) for part in parts), 0, "commands"),
        LimitCheck(
            "suggestions beside choices", sum(_has_choices_and_autocomplete(part) for part in parts), 0, "options"
        ),
    ]


def count_characters(command: PayloadPart) -> int:
    """Count a command's characters as Discord does: every name, description and value, in its longest language."""
    return sum(
        _max_length(part, "name") + _max_length(part, "description") + len(str(part.get("value", "")))
        for part in _iterate_parts(command)
    )


def _iterate_parts(part: PayloadPart) -> Iterator[PayloadPart]:
    """Yield a command, its options at every level, and their choices."""
    yield part
    for option in part.get("options") or ():
        yield from _iterate_parts(option)
    yield from part.get("choices") or ()


def _max_length(part: PayloadPart, key: str) -> int:
    """Return the length of a name or description in its longest language."""
    translations: Mapping[str, str] = part.get(f"{key}_localizations") or {}
    texts: list[str] = [part.get(key) or "", *translations.values()]
    return max(map(len, texts))


def _max_of(values: Iterator[int] | map[int]) -> int:
    return max(values, default=0)


def _subcommand_depth(part: PayloadPart) -> int:
    subcommands = [option for option in part.get("options") or () if option.get("type") in (SUBCOMMAND, GROUP)]
    return 1 + max(map(_subcommand_depth, subcommands)) if subcommands else 0


def _is_valid_name(part: PayloadPart) -> bool:
    translations: Mapping[str, str] = part.get("name_localizations") or {}
    names: list[str] = [part["name"], *translations.values()]
    return all(NAME_PATTERN.fullmatch(name) and name == name.lower() for name in names)


def _count_duplicates(tree: Sequence[PayloadPart]) -> int:
    """Count the names that one list of commands, options or choices has twice, in English or in a translation."""
    parts = [part for command in tree for part in _iterate_parts(command)]
    siblings = [[command for command in tree if command.get("type", SLASH) == kind] for kind in (SLASH, USER, MESSAGE)]
    siblings += [part.get(key) or [] for part in parts for key in ("options", "choices")]
    languages = {None, *(language for part in parts for language in part.get("name_localizations") or ())}
    return sum(
        len(names) - len(set(names))
        for language in languages
        for names in ([_name_in(part, language) for part in group] for group in siblings)
    )


def _name_in(part: PayloadPart, language: str | None) -> str:
    translations: Mapping[str | None, str] = part.get("name_localizations") or {}
    return translations.get(language) or part["name"]


def _is_misordered(part: PayloadPart) -> bool:
    required_flags = [bool(option.get("required")) for option in part.get("options") or ()]
    return required_flags != sorted(required_flags, reverse=True)


def _has_choices_and_autocomplete(part: PayloadPart) -> bool:
    return bool(part.get("autocomplete") and part.get("choices"))
