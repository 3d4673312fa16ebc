"""Prompt shortening: leaves out each word in turn and measures how far the text's embedding moves. Pure.

The vectors come from a text encoder: of all words first, then of the words without each one. They measure that
encoder's reading, not pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bot.prompt.concepts import concepts
from bot.prompt.emphasis import bare
from bot.prompt.flags import split
from bot.refused import Refused

MOST = 126  # words: each is one text for the encoder, 64 at a time, and it reads hardly more
KEPT = (0.8, 0.6, 0.45, 0.3, 0.2)  # shares of the words, in each shorter version

Vector = Sequence[float]


@dataclass(frozen=True)
class Version:
    """A shorter prompt: which of the words it keeps, in order, and its text without flags."""

    kept: tuple[int, ...]
    text: str


def words_of(text: str) -> tuple[str, ...]:
    """Return the words that can be left out, without flags, weights and emphasis.

    Raises `Refused` for fewer than two, and for more than can be measured.
    """
    said = " ".join(part.text for part in concepts(split(text)[0]))
    words = tuple(word for word in bare(said).split() if word.strip(",.;:"))
    if len(words) < 2:
        raise Refused("There is nothing to shorten: that has fewer than two words.")
    if len(words) > MOST:
        raise Refused(f"At most {MOST} words can be weighed, and these are {len(words)}.")
    return words


def without_each(words: Sequence[str]) -> list[str]:
    """Return all words as one text, then the texts that lack one of them."""
    return [" ".join(words), *(" ".join((*words[:at], *words[at + 1 :])) for at in range(len(words)))]


def moved(vectors: Sequence[Vector]) -> tuple[float, ...]:
    """Return how far each word's absence moves the embedding: 1 - cos of the first vector and its own, at least 0."""
    whole, *others = vectors
    return tuple(max(0.0, 1.0 - alike(whole, other)) for other in others)


def alike(one: Vector, other: Vector) -> float:
    """Return the cosine of the angle between two vectors; 0 if one has no length."""
    lengths = math.sqrt(math.fsum(x * x for x in one) * math.fsum(y * y for y in other))
    return math.fsum(x * y for x, y in zip(one, other, strict=True)) / lengths if lengths else 0.0


def shares(moves: Sequence[float]) -> tuple[float, ...]:
    """Return each word's share of all movement; equal shares if nothing moved."""
    total = math.fsum(moves)
    return tuple(move / total for move in moves) if total > 0 else tuple(1 / len(moves) for _ in moves)


def ranked(moves: Sequence[float]) -> list[int]:
    """Return the words from the heaviest to the lightest; of equal ones the earlier first."""
    return sorted(range(len(moves)), key=lambda at: (-moves[at], at))


def versions(words: Sequence[str], moves: Sequence[float]) -> list[Version]:
    """Return shorter versions of the heaviest words in their old order, each shorter than the one before."""
    order = ranked(moves)
    counts = dict.fromkeys(max(1, math.ceil(part * len(words))) for part in KEPT)
    return [kept(words, order[:count]) for count in counts if count < len(words)]


def kept(words: Sequence[str], which: Sequence[int]) -> Version:
    """Return the version of these words, in their order. Raises IndexError for one that is not there."""
    chosen = tuple(sorted(which))
    return Version(chosen, " ".join(words[at] for at in chosen).strip(" ,;:"))
