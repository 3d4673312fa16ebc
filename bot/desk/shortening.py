"""Prompt shortening: weighs a prompt's words by the workers' text encoder and suggests shorter versions.

`bot.prompt.shortening` ranks them; this module gets the embeddings.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bot.prompt import shortening
from bot.prompt.shortening import Version
from bot.refused import Refused
from engine.bus import NobodyAnswers

AT_ONCE = 64  # texts in a request

Embed = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[float]]]]


@dataclass(frozen=True)
class Shorter:
    """A shorter version, and the cosine similarity of its embedding to the whole prompt's."""

    version: Version
    alike: float


@dataclass(frozen=True)
class Weighed:
    """A prompt's words, each with its share of the effect (together 1), and shorter versions, longest first."""

    words: tuple[str, ...]
    shares: tuple[float, ...]
    shorter: tuple[Shorter, ...]


class Shortening:
    """Weighs prompts. `embed`: texts, up to 64, as unit vectors."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed

    async def weigh(self, text: str) -> Weighed:
        """Weigh a prompt. Raises `Refused` for too few or too many words, and if no worker can embed text."""
        words = shortening.words_of(text)
        vectors = await self._vectors(shortening.without_each(words))
        moves = shortening.moved(vectors)
        found = shortening.versions(words, moves)
        read = await self._vectors([one.text for one in found])
        shorter = (Shorter(one, shortening.alike(vectors[0], vector)) for one, vector in zip(found, read, strict=True))
        return Weighed(words, shortening.shares(moves), tuple(shorter))

    async def _vectors(self, texts: Sequence[str]) -> list[Sequence[float]]:
        found: list[Sequence[float]] = []
        try:
            for at in range(0, len(texts), AT_ONCE):
                found += await self._embed(texts[at : at + AT_ONCE])
        except (NobodyAnswers, ConnectionError) as error:
            raise Refused("No worker that understands text is online: try again later.") from error
        if len({len(one) for one in found}) > 1:
            raise Refused("The workers read texts in different ways just now: try again later.")
        return found
