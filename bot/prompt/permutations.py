"""`{a,b}` in a prompt: one prompt for each choice, at most ten, counted before any is built.

The escapes are `\\{ \\} \\,`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from bot.domain.errors import UserError

MAX_JOBS = 10
MAX_DEPTH = 8  # bounds the recursion below

_TOKEN = re.compile(r"\\[{},]|[{},]|[^\\{},]+|\\")


@dataclass
class _Choice:
    """The options between two braces, each a list of parts that follow one another."""

    options: list[list[str | _Choice]] = field(default_factory=lambda: [[]])


def expand_braces(text: str) -> tuple[str, ...]:
    """Return every prompt that `text` stands for, the first choice varying slowest; none is longer than `text`.

    Raises `UserError` for unbalanced braces, braces nested deeper than 8, or more than 10 prompts.
    """
    parts = _parse_braces(text)
    count = _count_prompts(parts)
    if count > MAX_JOBS:
        count_text = str(count) if count <= 1000 else "more than 1000"
        raise UserError(f"The braces make {count_text} jobs; at most {MAX_JOBS} are taken at once.")
    return tuple(_build_prompts(parts))


def _parse_braces(text: str) -> list[str | _Choice]:
    parts: list[str | _Choice] = []
    open_choices: list[tuple[_Choice, list[str | _Choice]]] = []  # open choices, outermost first; the list around each
    for part in _TOKEN.findall(text):
        if part == "{":
            choice = _Choice()
            parts.append(choice)
            open_choices.append((choice, parts))
            parts = choice.options[0]
            _check_depth(len(open_choices))
        elif part == "}":
            if not open_choices:
                raise UserError("There is a } without its {. Write \\} for a plain brace.")
            _, parts = open_choices.pop()
        elif part == "," and open_choices:
            parts = []
            open_choices[-1][0].options.append(parts)
        else:
            parts.append(part[1:] if len(part) == 2 and part[0] == "\\" else part)
    if open_choices:
        raise UserError("There is a { without its }. Write \\{ for a plain brace.")
    return parts


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise UserError(f"Braces may be nested {MAX_DEPTH} deep; these go deeper.")


def _count_prompts(parts: list[str | _Choice]) -> int:
    choices = (part for part in parts if isinstance(part, _Choice))
    return math.prod(sum(_count_prompts(option) for option in choice.options) for choice in choices)


def _build_prompts(parts: list[str | _Choice]) -> list[str]:
    prompts = [""]
    for part in parts:
        endings = (
            [part]
            if isinstance(part, str)
            else [ending for option in part.options for ending in _build_prompts(option)]
        )
        prompts = [prefix + ending for prefix in prompts for ending in endings]
    return prompts


def escape_braces(text: str) -> str:
    """Escape the braces in `text`, so that it stands for itself alone when it is parsed again."""
    return re.sub(r"[{}]", r"\\\g<0>", text)
