"""Prompt shortening: weighs a prompt's words by the workers' text encoder and suggests shorter versions.

`rules` ranks them; this module gets the embeddings.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bot.domain.errors import UserError
from bot.domain.feature import RunningFeature
from bot.features.shorten import rules
from bot.features.shorten.rules import ShortPrompt
from engine.bus import NoWorkerAnswers

if TYPE_CHECKING:
    from bot.app.wiring import App

BATCH_SIZE = 64  # texts in a request

Embed = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[float]]]]


@dataclass(frozen=True)
class ShorterPrompt:
    """A shorter version, and the cosine similarity of its embedding to the whole prompt's."""

    version: ShortPrompt
    similarity: float


@dataclass(frozen=True)
class PromptWeights:
    """A prompt's words, each with its share of the effect (together 1), and shorter versions, longest first."""

    words: tuple[str, ...]
    shares: tuple[float, ...]
    shorter_prompts: tuple[ShorterPrompt, ...]


class PromptShortener:
    """Weighs prompts. `embed` returns up to 64 texts as unit vectors."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed

    async def weigh_prompt(self, text: str) -> PromptWeights:
        """Weigh a prompt. Raises `UserError` for too few or too many words, and if no worker can embed text."""
        words = rules.split_words(text)
        vectors = await self._embed_texts(rules.leave_one_out(words))
        effects = rules.measure_movements(vectors)
        candidates = rules.build_short_prompts(words, effects)
        candidate_vectors = await self._embed_texts([candidate.text for candidate in candidates])
        shorter_prompts = (
            ShorterPrompt(candidate, rules.cosine_similarity(vectors[0], vector))
            for candidate, vector in zip(candidates, candidate_vectors, strict=True)
        )
        return PromptWeights(words, rules.movement_shares(effects), tuple(shorter_prompts))

    async def _embed_texts(self, texts: Sequence[str]) -> list[Sequence[float]]:
        vectors: list[Sequence[float]] = []
        try:
            for start in range(0, len(texts), BATCH_SIZE):
                vectors += await self._embed(texts[start : start + BATCH_SIZE])
        except (NoWorkerAnswers, ConnectionError) as error:
            raise UserError("No worker that understands text is online: try again later.") from error
        if len({len(vector) for vector in vectors}) > 1:
            raise UserError("The workers read texts in different ways just now: try again later.")
        return vectors


@asynccontextmanager
async def open_service(app: App) -> AsyncGenerator[RunningFeature]:
    """Open the shortener over the workers' text encoders."""
    yield RunningFeature(PromptShortener(app.bus.embed))
