"""Cache key of an encoded text: the text and everything in its recipe that changes its encoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from engine.contract import Lora, ModelPart, Recipe, needs_unconditional_row
from engine.models.family import Conditioning


class PromptKey(NamedTuple):
    """Each key is encoded once."""

    text: str
    negative: bool = False  # it is the empty or negative prompt of guidance
    chunks: int = 1  # chunks of the image's longest text: all its texts get this length
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[ModelPart, ...] = ()  # textual inversions whose words occur in the text
    clip_skip: int = 0  # of a negative text always 0, as in diffusers' pipelines


def list_texts(recipe: Recipe) -> list[str]:
    """Return every text that has a row in some step."""
    negative = (
        [recipe.negative] if any(needs_unconditional_row(recipe, is_guided) for is_guided in (True, False)) else []
    )
    return [*(concept.text for concept in recipe.concepts), *negative]


def count_bytes(cache: Mapping[PromptKey, Conditioning]) -> int:
    """Return the memory of cached texts."""
    return sum(part.nbytes for conditioning in cache.values() for part in conditioning)
