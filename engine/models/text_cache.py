"""Encoded texts, kept until others were used more recently. Two threads may encode texts at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import NamedTuple

from engine.contract import Lora, ModelPart, Recipe, needs_unconditional_row
from engine.models.family import Conditioning

MAX_TEXTS = 256
MAX_BYTES = 256 * 2**20


class TextCache:
    """At most `MAX_TEXTS` texts of `MAX_BYTES` together, but always one."""

    def __init__(self) -> None:
        self._conditioning: OrderedDict[PromptKey, Conditioning] = OrderedDict()
        self._lock = Lock()

    @property
    def keys(self) -> list[PromptKey]:
        """The kept texts, the one used longest ago first."""
        with self._lock:
            return list(self._conditioning)

    def find(self, prompt: PromptKey) -> Conditioning | None:
        """Return a text's conditions, if they are kept."""
        with self._lock:
            if prompt in self._conditioning:
                self._conditioning.move_to_end(prompt)
            return self._conditioning.get(prompt)

    def keep(self, prompt: PromptKey, conditioning: Conditioning) -> Conditioning:
        """Keep a text's conditions, and return them; if another thread came first, return its."""
        with self._lock:
            cached = self._conditioning.setdefault(prompt, conditioning)
            while len(self._conditioning) > 1 and (
                len(self._conditioning) > MAX_TEXTS or count_bytes(self._conditioning) > MAX_BYTES
            ):
                self._conditioning.popitem(last=False)
            return cached

    def clear(self) -> None:
        with self._lock:
            self._conditioning.clear()


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
