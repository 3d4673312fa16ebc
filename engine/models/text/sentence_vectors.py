"""Sentence vectors by MiniLM: the mean of its token states, at length 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

MAX_TOKENS = 256  # the encoder's training length; a longer text is truncated


@torch.inference_mode()
def embed_texts(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> torch.Tensor:
    """Return one unit vector a text, [texts, 384], by MiniLM's tokenizer and encoder."""
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    batch = batch.to(encoder.device)
    states = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    mean = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
    return torch.nn.functional.normalize(mean, dim=-1)
