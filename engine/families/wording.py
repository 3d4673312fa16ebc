"""Cache key of an encoded text: the text and everything in its recipe that changes its encoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from engine.families.family import Conditions
from engine.job import Lora, Recipe, unconditional


class Wording(NamedTuple):
    """Equal ones are encoded once."""

    text: str
    negative: bool = False  # it is the empty or negative prompt of guidance
    chunks: int = 1  # chunks of the image's longest text: all its texts get this length
    loras: tuple[Lora, ...] = ()


def texts_of(recipe: Recipe) -> list[str]:
    """Return every text that has a row in some step."""
    negative = [recipe.negative] if any(unconditional(recipe, held) for held in (True, False)) else []
    return [*(concept.text for concept in recipe.concepts), *negative]


def bytes_of(texts: Mapping[Wording, Conditions]) -> int:
    """Return the memory of cached texts."""
    return sum(part.nbytes for each in texts.values() for part in each)
