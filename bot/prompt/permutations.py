"""`{a,b}` in a prompt: one prompt for each choice, at most ten, counted before any is built.

The escapes are `\\{ \\} \\,`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from bot.refused import Refused

MAX_JOBS = 10
MAX_DEPTH = 8  # bounds the recursion below

_TOKEN = re.compile(r"\\[{},]|[{},]|[^\\{},]+|\\")


@dataclass
class _Choice:
    """The options between two braces, each a list of parts that follow one another."""

    options: list[list[str | _Choice]] = field(default_factory=lambda: [[]])


def expand(text: str) -> tuple[str, ...]:
    """Return every prompt that `text` stands for, the first choice varying slowest; none is longer than `text`.

    Raises `Refused` for unbalanced braces, braces nested deeper than 8, or more than 10 prompts.
    """
    parts = _parsed(text)
    count = _count(parts)
    if count > MAX_JOBS:
        many = str(count) if count <= 1000 else "more than 1000"
        raise Refused(f"The braces make {many} jobs; at most {MAX_JOBS} are taken at once.")
    return tuple(_prompts(parts))


def _parsed(text: str) -> list[str | _Choice]:
    parts: list[str | _Choice] = []
    inside: list[tuple[_Choice, list[str | _Choice]]] = []  # open choices, outermost first; the list around each
    for part in _TOKEN.findall(text):
        if part == "{":
            choice = _Choice()
            parts.append(choice)
            inside.append((choice, parts))
            parts = choice.options[0]
            _check_depth(len(inside))
        elif part == "}":
            if not inside:
                raise Refused("There is a } without its {. Write \\} for a plain brace.")
            _, parts = inside.pop()
        elif part == "," and inside:
            parts = []
            inside[-1][0].options.append(parts)
        else:
            parts.append(part[1:] if len(part) == 2 and part[0] == "\\" else part)
    if inside:
        raise Refused("There is a { without its }. Write \\{ for a plain brace.")
    return parts


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Refused(f"Braces may be nested {MAX_DEPTH} deep; these go deeper.")


def _count(parts: list[str | _Choice]) -> int:
    choices = (part for part in parts if isinstance(part, _Choice))
    return math.prod(sum(_count(option) for option in choice.options) for choice in choices)


def _prompts(parts: list[str | _Choice]) -> list[str]:
    made = [""]
    for part in parts:
        endings = [part] if isinstance(part, str) else [one for option in part.options for one in _prompts(option)]
        made = [begun + ending for begun in made for ending in endings]
    return made


def literally(text: str) -> str:
    """Escape the braces in `text`, so that it stands for itself alone when it is parsed again."""
    return re.sub(r"[{}]", r"\\\g<0>", text)
