"""Cleaning of typed prompts, and their split at `::` into weighted concepts."""

from __future__ import annotations

import re

from ftfy import fix_text

from bot.refused import Refused
from bot.sentences import plain, shortened
from engine.job import MAX_CONCEPTS, Concept

MAX_CHARACTERS = 2000
MAX_WEIGHT = 100.0
WORDLESS = Concept("")  # the empty prompt, allowed with an init image

# The weight stands directly after `::`; text that only begins like a number ("::2nd") is no weight.
_WEIGHT = re.compile(r"::(?:([+\-−–]?(?:[0-9]{1,6}(?:\.[0-9]{0,6})?|\.[0-9]{1,6}))(?=[\s:,;.]|$))?")


def clean(text: str) -> str:
    """Return the text on one line: mojibake fixed (ftfy), NFC, no control or invisible characters.

    Raises `Refused` for more than 2000 characters.
    """
    _check_length(text)
    cleaned = plain(fix_text(text, uncurl_quotes=False))
    _check_length(cleaned)
    return cleaned


def _check_length(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise Refused(f"A prompt may have {MAX_CHARACTERS} characters; this one has {len(text)}.")


def concepts(words: str) -> tuple[Concept, ...]:
    """Return `red apple:: blue::-0.5` as concepts with the written weights (1 if there is none; 0 is kept).

    Raises `Refused` for a weight without words or out of range, more than 8 concepts, or a sum of weights not above 0.
    """
    pieces = _WEIGHT.split(words)  # text, weight, text, weight, …, text
    found = [_concept(text, weight) for text, weight in zip(pieces[0::2], pieces[1::2], strict=False)]
    if pieces[-1].strip():
        found.append(Concept(pieces[-1].strip()))
    _check_sum(found)
    if len(found) > MAX_CONCEPTS:
        raise Refused(f"A prompt may have {MAX_CONCEPTS} weighted parts; this one has {len(found)}.")
    return tuple(found)


def _concept(text: str, written: str | None) -> Concept:
    weight = 1.0 if written is None else float(written.replace("−", "-").replace("–", "-"))
    text = text.strip()
    if not text:
        raise Refused(f"There are no words before ::{written or ''} for it to weigh.")
    if abs(weight) > MAX_WEIGHT:
        raise Refused(f"The weight {weight:g} of “{shortened(text, 40)}” is not within ±{MAX_WEIGHT:g}.")
    return Concept(text, weight)


def _check_sum(found: list[Concept]) -> None:
    if not found:
        raise Refused("The prompt is empty: say what to draw, as in “terrier, looking up, white background”.")
    total = sum(concept.weight for concept in found)
    if total <= 1e-9:
        raise Refused(f"The weights add up to {total:g}; they must add up to more than 0: what should be drawn?")


def balanced(parts: tuple[Concept, ...]) -> tuple[Concept, ...]:
    """Return the concepts with relative weights: the positive ones add up to 1.

    So `a::2 b::1` is `a::4 b::2`, guidance keeps its strength with any number of concepts, and a negative concept
    steers away in proportion. Weights that add up to more than 0 then all lie between -1 and 1; those of 0 are dropped.
    """
    positive = sum(part.weight for part in parts if part.weight > 0)
    return tuple(Concept(part.text, part.weight / positive) for part in parts if part.weight)
