r"""Typed prompts: cleaned, `{a,b}` expanded, and split at `::` into weighted concepts. Pure.

Braces make at most ten prompts, counted before any is built; the escapes are `\{ \} \,`. Emphasis in AUTOMATIC1111's
syntax, `(word:1.2)`, `((word))`, `[word]`, is the engine's; this module only removes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ftfy import fix_text

from bot.domain.errors import UserError
from bot.domain.texts import clean_text, shorten
from engine.contract import MAX_CONCEPTS, Concept

MAX_CHARACTERS = 2000
MAX_WEIGHT = 100.0
EMPTY_CONCEPT = Concept("")  # the empty prompt, allowed with an init image

# The weight stands directly after `::`; text that only begins like a number ("::2nd") is no weight.
_WEIGHT = re.compile(r"::(?:([+\-−–]?(?:[0-9]{1,6}(?:\.[0-9]{0,6})?|\.[0-9]{1,6}))(?=[\s:,;.]|$))?")


def clean_prompt(text: str) -> str:
    """Return the text on one line: mojibake fixed (ftfy), NFC, no control or invisible characters.

    Raises `UserError` for more than 2000 characters.
    """
    _check_length(text)
    cleaned = clean_text(fix_text(text, uncurl_quotes=False))
    _check_length(cleaned)
    return cleaned


def _check_length(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"A prompt may have {MAX_CHARACTERS} characters; this one has {len(text)}.")


def parse_concepts(words: str) -> tuple[Concept, ...]:
    """Return `red apple:: blue::-0.5` as concepts with the written weights (1 if there is none; 0 is kept).

    Raises `UserError` for a weight without words or out of range, for more than 8 concepts, or for weights whose sum is
    not above 0.
    """
    parts = _WEIGHT.split(words)  # text, weight, text, weight, …, text
    parsed_concepts = [_parse_concept(text, weight) for text, weight in zip(parts[0::2], parts[1::2], strict=False)]
    if parts[-1].strip():
        parsed_concepts.append(Concept(parts[-1].strip()))
    check_weights(parsed_concepts)
    return tuple(parsed_concepts)


def _parse_concept(text: str, weight_text: str | None) -> Concept:
    weight = 1.0 if weight_text is None else float(weight_text.replace("−", "-").replace("–", "-"))
    text = text.strip()
    if not text:
        raise UserError(f"There are no words before ::{weight_text or ''} for it to weigh.")
    if abs(weight) > MAX_WEIGHT:
        raise UserError(f"The weight {weight:g} of “{shorten(text, 40)}” is not within ±{MAX_WEIGHT:g}.")
    return Concept(text, weight)


def check_weights(weighted_concepts: Sequence[Concept]) -> None:
    """Raise `UserError` for no concepts, for more than 8, or for weights whose sum is not above 0."""
    if not weighted_concepts:
        raise UserError("The prompt is empty: say what to draw, as in “terrier, looking up, white background”.")
    total = sum(concept.weight for concept in weighted_concepts)
    if total <= 1e-9:
        raise UserError(f"The weights add up to {total:g}; they must add up to more than 0: what should be drawn?")
    if len(weighted_concepts) > MAX_CONCEPTS:
        raise UserError(f"A prompt may have {MAX_CONCEPTS} weighted parts; this one has {len(weighted_concepts)}.")


def balance_weights(weighted_concepts: tuple[Concept, ...]) -> tuple[Concept, ...]:
    """Return the concepts with relative weights: the positive ones add up to 1.

    So `a::2 b::1` equals `a::4 b::2`. Guidance keeps its strength with any number of concepts, and a negative concept
    steers away in proportion. Weights that add up to more than 0 then all lie between -1 and 1; those of 0 are dropped.
    """
    positive = sum(concept.weight for concept in weighted_concepts if concept.weight > 0)
    return tuple(Concept(concept.text, concept.weight / positive) for concept in weighted_concepts if concept.weight)


# `engine.prompt.emphasis` has the same pattern: else a word could hide behind a number that only the engine removes.
NUMBER = r"[+-]?(?:10(?:\.0{0,6})?|[0-9](?:\.[0-9]{0,6})?|\.[0-9]{1,6})"
_MARK = re.compile(rf"\\([()\[\]\\])|:\s*{NUMBER}\s*\)|[()\[\]]")


def remove_emphasis(text: str) -> str:
    """Remove emphasis, so that a word split by it is whole again: `g(or:1.3)e` becomes `gore`."""
    return _MARK.sub(lambda mark: mark[1] or "", text)


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
