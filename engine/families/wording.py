"""One text as a model is to read it, with what of its recipe changes the reading. Knows nothing of encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from engine.families.family import Conditions
from engine.job import Lora, Recipe, unconditional


class Wording(NamedTuple):
    """Equal ones are encoded once."""

    text: str
    negative: bool = False  # it is the empty or negative text of guidance
    chunks: int = 1  # of the image's longest text, where a model reads in chunks: all of its texts become equally long
    loras: tuple[Lora, ...] = ()


def texts_of(recipe: Recipe) -> list[str]:
    """Every text that has a row in some step."""
    negative = [recipe.negative] if any(unconditional(recipe, held) for held in (True, False)) else []
    return [*(concept.text for concept in recipe.concepts), *negative]


def bytes_of(texts: Mapping[Wording, Conditions]) -> int:
    """How much memory cached texts take."""
    return sum(part.nbytes for each in texts.values() for part in each)
