"""Finds the words of a vocabulary whose sentence vectors are nearest to a weighted sum. No pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from engine.contract import JobRejected
from training.lab.word_sums import Term

MAX_WORDS = 50_000
MAX_BYTES = 8 << 20
BATCH = 256

EmbedTexts = Callable[[Sequence[str]], list[list[float]]]


def read_vocabulary(file: Path) -> tuple[str, ...]:
    """Read the words of a JSON list, or of the list under `words`. Raises `JobRejected`."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise JobRejected(f"{file.name} is too large for a list of words: at most {MAX_BYTES >> 20} MB.", "member")
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise JobRejected(f"There is no list of words {file.name}: name one with --words.", "member") from None
    except (OSError, ValueError, RecursionError) as error:
        raise JobRejected(f"{file.name} is not a list of words in JSON.", "member") from error
    listed = cast(dict[str, Any], content).get("words") if isinstance(content, dict) else content
    words = cast(list[Any], listed) if isinstance(listed, list) else []
    if not 0 < len(words) <= MAX_WORDS or not all(_is_word(word) for word in words):
        raise JobRejected(f"{file.name} must hold a list of 1 to {MAX_WORDS:,} short texts.", "member")
    return tuple(dict.fromkeys(words))


@dataclass(frozen=True)
class LabVocabulary:
    """Words and their vectors `[words, features]`, in the same order."""

    words: tuple[str, ...]
    vectors: torch.Tensor

    @classmethod
    def embed_words(cls, embed_texts: EmbedTexts, words: Sequence[str]) -> LabVocabulary:
        """Embed the words; takes seconds for thousands. Batches texts of similar length to save padding."""
        order = sorted(words, key=lambda word: (len(word), word))
        batches = (embed_texts(order[start : start + BATCH]) for start in range(0, len(order), BATCH))
        return cls(tuple(order), torch.tensor([vector for batch in batches for vector in batch]))


def find_nearest_words(
    embed_texts: EmbedTexts, terms: Sequence[Term], candidates: LabVocabulary, count: int = 10
) -> list[tuple[str, float]]:
    """Return the `count` words with the largest cosine to Σ wᵢ·vᵢ, without the terms themselves. Raises `JobRejected`.

    Sentence vectors have unit length, so only a term's weight counts, not its number of words.
    """
    weights = torch.tensor([term.weight for term in terms])
    total = weights @ torch.tensor(embed_texts([term.text for term in terms]))
    length = cast(torch.Tensor, total.norm())
    if float(length) < 1e-6:
        raise JobRejected("The terms cancel each other out: nothing is left to look for.", "member")
    term_texts = {term.text.lower() for term in terms}
    cosines = candidates.vectors @ (total / length)
    order = cast(list[int], cosines.argsort(descending=True, stable=True).tolist())
    pairs = ((candidates.words[index], float(cosines[index])) for index in order)
    matches = [(word, cosine) for word, cosine in pairs if word.lower() not in term_texts]
    if not matches:
        raise JobRejected("The list has no other words than those of the sum.", "member")
    return matches[:count]


def _is_word(word: object) -> bool:
    return isinstance(word, str) and 0 < len(word) <= 200
