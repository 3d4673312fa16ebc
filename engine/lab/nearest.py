"""Finds the words of a vocabulary whose sentence vectors are nearest to a weighted sum. Knows no pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.lab.sums import Term
from engine.unfit import Unfit

MOST_WORDS = 50_000
MOST_BYTES = 8 << 20
BATCH = 256

Embed = Callable[[Sequence[str]], list[list[float]]]


def vocabulary(file: Path) -> tuple[str, ...]:
    """Read the words of a JSON list, or of the list under `words`. Raises `Unfit`."""
    try:
        if file.stat().st_size > MOST_BYTES:
            raise Unfit(f"{file.name} is too large for a list of words: at most {MOST_BYTES >> 20} MB.", "member")
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise Unfit(f"There is no list of words {file.name}: name one with --words.", "member") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Unfit(f"{file.name} is not a list of words in JSON.", "member") from error
    words = content.get("words") if isinstance(content, dict) else content
    if not isinstance(words, list) or not 0 < len(words) <= MOST_WORDS or not all(_is_word(word) for word in words):
        raise Unfit(f"{file.name} must hold a list of 1 to {MOST_WORDS:,} short texts.", "member")
    return tuple(dict.fromkeys(words))


@dataclass(frozen=True)
class Known:
    """Words and their vectors `[words, features]`, in the same order."""

    words: tuple[str, ...]
    vectors: torch.Tensor

    @classmethod
    def of(cls, embed: Embed, words: Sequence[str]) -> Known:
        """Embed the words; takes seconds for thousands. Batches texts of similar length to save padding."""
        ordered = sorted(words, key=lambda word: (len(word), word))
        vectors = [vector for at in range(0, len(ordered), BATCH) for vector in embed(ordered[at : at + BATCH])]
        return cls(tuple(ordered), torch.tensor(vectors))


def nearest(embed: Embed, terms: Sequence[Term], known: Known, most: int = 10) -> list[tuple[str, float]]:
    """Return the `most` words with the largest cosine to Σ wᵢ·vᵢ, without the terms themselves. Raises `Unfit`.

    Sentence vectors have unit length, so only a term's weight counts, not its number of words.
    """
    weights = torch.tensor([term.weight for term in terms])
    total = weights @ torch.tensor(embed([term.text for term in terms]))
    if float(total.norm()) < 1e-6:
        raise Unfit("The terms cancel each other out: nothing is left to look for.", "member")
    own = {term.text.lower() for term in terms}
    cosines = known.vectors @ (total / total.norm())
    order = cosines.argsort(descending=True, stable=True).tolist()
    found = [(known.words[index], float(cosines[index])) for index in order if known.words[index].lower() not in own]
    if not found:
        raise Unfit("The list has no other words than those of the sum.", "member")
    return found[:most]


def _is_word(word: object) -> bool:
    return isinstance(word, str) and 0 < len(word) <= 200
