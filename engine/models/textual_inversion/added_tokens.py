"""A text encoder's token embeddings with more tokens at their end, for as long as one text is encoded.

The encoder and its weights stay as they are, so a word of one prompt cannot change another prompt, and it takes no
memory but that of its own vectors. It also works on copies with LoRAs and on encoders with hooks.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch


class ExtendedEmbedding(torch.nn.Module):
    """Token embeddings: `original` below `first_id`, `vectors` `[tokens, features]` from it on."""

    def __init__(self, original: Any, first_id: int, vectors: torch.Tensor) -> None:
        super().__init__()
        self.original = original
        self._first_id = first_id
        self.register_buffer("vectors", vectors.to(original.weight.device, original.weight.dtype))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return `[…, features]` for token ids `[…]`, the same bits as a longer matrix would give."""
        known = self.original(ids.clamp(max=self._first_id - 1))
        new_ids = (ids - self._first_id).clamp(min=0).to(known.device)  # an offloaded original moves its own inputs
        added = torch.nn.functional.embedding(new_ids, self.get_buffer("vectors").to(known.device))
        return torch.where((ids >= self._first_id)[..., None].to(known.device), added, known)


@contextmanager
def added_tokens(encoder: Any, first_id: int, vectors: torch.Tensor) -> Generator[None]:
    """Add the tokens to a transformers encoder. Hold the lock on its pipeline meanwhile."""
    original = encoder.get_input_embeddings()
    encoder.set_input_embeddings(ExtendedEmbedding(original, first_id, vectors))
    try:
        yield
    finally:
        encoder.set_input_embeddings(original)
