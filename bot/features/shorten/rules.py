"""Prompt shortening: leaves out each word in turn and measures how far the text's embedding moves. Pure.

The vectors come from a text encoder: of all words first, then of the words without each one. They measure that
encoder's reading, not pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bot.domain.errors import UserError
from bot.prompt.concepts import parse_concepts, remove_emphasis
from bot.prompt.flags import split_flags

MAX_WORDS = 126  # words: each is one text for the encoder, 64 at a time, and it reads hardly more
KEPT_SHARES = (0.8, 0.6, 0.45, 0.3, 0.2)  # shares of the words, in each shorter version

Vector = Sequence[float]


@dataclass(frozen=True)
class ShortPrompt:
    """A shorter prompt: which of the words it keeps, in order, and its text without flags."""

    word_indices: tuple[int, ...]
    text: str


def split_words(text: str) -> tuple[str, ...]:
    """Return the words that can be left out, without flags, weights and emphasis.

    Raises `UserError` for fewer than two, and for more than can be measured.
    """
    words_text = " ".join(concept.text for concept in parse_concepts(split_flags(text)[0]))
    words = tuple(word for word in remove_emphasis(words_text).split() if word.strip(",.;:"))
    if len(words) < 2:
        raise UserError("There is nothing to shorten: that has fewer than two words.")
    if len(words) > MAX_WORDS:
        raise UserError(f"At most {MAX_WORDS} words can be weighed, and these are {len(words)}.")
    return words


def leave_one_out(words: Sequence[str]) -> list[str]:
    """Return all words as one text, then the texts that lack one of them."""
    return [" ".join(words), *(" ".join((*words[:index], *words[index + 1 :])) for index in range(len(words)))]


def measure_movements(vectors: Sequence[Vector]) -> tuple[float, ...]:
    """Return how far each word's absence moves the embedding: 1 - cos of the first vector and its own, at least 0."""
    reference, *other_vectors = vectors
    return tuple(max(0.0, 1.0 - cosine_similarity(reference, vector)) for vector in other_vectors)


def cosine_similarity(first: Vector, second: Vector) -> float:
    """Return the cosine of the angle between two vectors; 0 if one has no length."""
    lengths = math.sqrt(math.fsum(x * x for x in first) * math.fsum(y * y for y in second))
    return math.fsum(x * y for x, y in zip(first, second, strict=True)) / lengths if lengths else 0.0


def movement_shares(movements: Sequence[float]) -> tuple[float, ...]:
    """Return each word's share of all movement; equal shares if nothing moved."""
    total = math.fsum(movements)
    return tuple(movement / total if total > 0 else 1 / len(movements) for movement in movements)


def rank_words(movements: Sequence[float]) -> list[int]:
    """Return the words from the heaviest to the lightest; of equal ones the earlier first."""
    return sorted(range(len(movements)), key=lambda index: (-movements[index], index))


def build_short_prompts(words: Sequence[str], movements: Sequence[float]) -> list[ShortPrompt]:
    """Return shorter versions of the heaviest words in their old order, each shorter than the one before."""
    order = rank_words(movements)
    counts = dict.fromkeys(max(1, math.ceil(share * len(words))) for share in KEPT_SHARES)
    return [build_short_prompt(words, order[:count]) for count in counts if count < len(words)]


def build_short_prompt(words: Sequence[str], indices: Sequence[int]) -> ShortPrompt:
    """Return the version of these words, in their order. Raises IndexError for one that is not there."""
    sorted_indices = tuple(sorted(indices))
    return ShortPrompt(sorted_indices, " ".join(words[index] for index in sorted_indices).strip(" ,;:"))
