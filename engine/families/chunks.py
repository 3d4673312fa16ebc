"""Prompt chunks for text encoders of a fixed length: tokens with weights, and several chunks for a long text.

As in AUTOMATIC1111's web UI (its wiki, "Infinite prompt length" and "Attention/emphasis"): 75 tokens a chunk between a
start and an end token. Each chunk is encoded separately, and the states are concatenated. A token's state is multiplied
by its weight. Unlike there, a chunk may end anywhere, not preferably at a comma.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from engine.emphasis import pieces

MOST = 3  # chunks of a text; the rest is ignored


class Chunk(NamedTuple):
    """Token ids of full length (with start, end and padding), their weights, and the unpadded length."""

    ids: list[int]
    weights: list[float]
    real: int


def room(tokenizer: Any) -> int:
    """Return how many tokens of a text fit into one chunk."""
    return int(tokenizer.model_max_length) - 2


def chunks(text: str, tokenizer: Any, most: int = MOST) -> list[Chunk]:
    """Split a text into 1 to `most` chunks; the rest is ignored."""
    ids: list[int] = []
    weights: list[float] = []
    for piece in pieces(text):
        told = tokenizer(piece.text, add_special_tokens=False, truncation=False, verbose=False).input_ids
        ids += told
        weights += [piece.weight] * len(told)
    size = room(tokenizer)
    starts = range(0, max(1, min(len(ids), most * size)), size)
    return [_chunk(ids[at : at + size], weights[at : at + size], tokenizer) for at in starts]


def padded(told: Sequence[Chunk], count: int, tokenizer: Any) -> list[Chunk]:
    """Return `count` chunks, filled up with empty ones."""
    return [*told, *[_chunk([], [], tokenizer)] * (count - len(told))][:count]


def is_plain(told: Sequence[Chunk]) -> bool:
    """Whether the text fits one chunk and has no weights, so the pipeline can encode it itself."""
    return len(told) == 1 and all(weight == 1.0 for weight in told[0].weights)


def _chunk(ids: list[int], weights: list[float], tokenizer: Any) -> Chunk:
    start, end = tokenizer("").input_ids[:2]
    empty = room(tokenizer) - len(ids)
    return Chunk(
        [start, *ids, end, *[tokenizer.pad_token_id] * empty], [1.0, *weights, 1.0, *[1.0] * empty], len(ids) + 2
    )


class Read(NamedTuple):
    """Token states `[tokens, features]` of all chunks, float32, and the first chunk's pooled text, if there is one."""

    states: torch.Tensor
    pooled: torch.Tensor | None


def read(told: Sequence[Chunk], encoder: Any, *, penultimate: bool = False, restore: bool = False) -> Read:
    """Encode each chunk. `penultimate`: use the layer before the last. `restore`: keep the mean of a chunk's states.

    Restoring is the web UI's "original" emphasis; without it, "no norm".
    """
    outs = [_forward(chunk, encoder, penultimate) for chunk in told]
    states = [out.hidden_states[-2][0].float() if penultimate else out[0][0].float() for out in outs]
    weighed = [_weighed(each, chunk.weights, restore) for each, chunk in zip(states, told, strict=True)]
    return Read(torch.cat(weighed), outs[0][0][0].float() if outs[0][0].dim() == 2 else None)


def _forward(chunk: Chunk, encoder: Any, penultimate: bool) -> Any:
    """Call the encoder as the pipelines do."""
    ids = torch.tensor([chunk.ids], device=encoder.device)
    mask = None
    if getattr(encoder.config, "use_attention_mask", False):
        mask = (torch.arange(len(chunk.ids), device=encoder.device) < chunk.real).long()[None]
    return encoder(ids, attention_mask=mask, output_hidden_states=penultimate)


def _weighed(states: torch.Tensor, weights: Sequence[float], restore: bool) -> torch.Tensor:
    if all(weight == 1.0 for weight in weights):
        return states
    weighed = states * torch.tensor(weights, device=states.device)[:, None]
    if not restore:
        return weighed
    kept = float(states.mean() / weighed.mean())
    return weighed * min(2.0, max(0.5, kept))  # clamped: a mean near zero says nothing of the states' size
