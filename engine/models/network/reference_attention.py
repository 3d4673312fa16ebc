"""Attention to reference pictures, added to a U-Net's attention to the prompt for one forward (Ye et al. 2023)."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.nn import functional

from engine.models.network.network_copies import MIN_BFLOAT16_KEYS
from engine.models.picture_conditions import Additions


def list_attention_layers(net: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, layer) of each layer of a U-Net that attends to the prompt, in the sequence of diffusers' loader."""
    for processor_name in net.attn_processors:
        name = processor_name.removesuffix(".processor")
        if name.endswith("attn2"):
            yield name, net.get_submodule(name)


ADDITION = "reference"  # names of such additional inputs begin with it


class ReferenceRows(NamedTuple):
    """Pictures of a forward's rows: keys and values of all layers `[n, tokens, width]`, and scales `[n]`.

    `rows`: their numbers; None: all rows.
    """

    keys_values: torch.Tensor
    scales: torch.Tensor
    rows: torch.Tensor | None = None


def find_references(additions: Additions) -> list[ReferenceRows]:
    """Return the reference pictures among the additional inputs of a forward."""
    return [ReferenceRows(*tensors) for name, tensors in additions.items() if name.startswith(ADDITION)]


@contextmanager
def attend_to_references(net: Any, references: Sequence[ReferenceRows]) -> Generator[None]:
    """Let the network attend to the references. Only one thread may run it meanwhile."""
    layers = [layer for _, layer in list_attention_layers(net)] if references else []
    processors = [layer.processor for layer in layers]
    start = 0
    try:
        for layer, processor in zip(layers, processors, strict=True):
            layer.set_processor(_ReferenceAttention(processor, references, start, layer.inner_dim))
            start += 2 * layer.inner_dim
        yield
    finally:
        for layer, processor in zip(layers, processors, strict=True):
            layer.set_processor(processor)


class _ReferenceAttention:
    """Attends to the prompt as `processor` does, and to references: their keys begin at `start`, then their values."""

    def __init__(self, processor: Any, references: Sequence[ReferenceRows], start: int, width: int) -> None:
        self._is_substitute = type(processor) is not AttnProcessor2_0
        self._references = references
        self._start = start
        self._width = width

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert attention_mask is None, "the prompts of these networks have no mask"
        query = attn.to_q(hidden_states)
        key = attn.to_k(encoder_hidden_states)
        value = attn.to_v(encoder_hidden_states)
        attended = _attend(attn.heads, query, key, value, in_float32=self._is_substitute)
        for keys_values, scales, rows in self._references:
            key, value = keys_values[..., self._start : self._start + 2 * self._width].chunk(2, dim=-1)
            queries = query if rows is None else query[rows]
            pictures = _attend(attn.heads, queries, key, value, in_float32=True) * scales.view(-1, 1, 1)
            attended = attended + pictures if rows is None else attended.index_add(0, rows, pictures)
        return attn.to_out[0](attended)


def _attend(
    heads: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, in_float32: bool
) -> torch.Tensor:
    """Return `[rows, queries, width]`; on a processor to few keys `in_float32`, which is faster and no less exact."""
    is_short = in_float32 and query.device.type == "cpu" and key.shape[1] < MIN_BFLOAT16_KEYS
    dtype = torch.float32 if is_short else query.dtype
    parts = [each.view(*each.shape[:2], heads, -1).transpose(1, 2).to(dtype) for each in (query, key, value)]
    q, k, v = parts
    return functional.scaled_dot_product_attention(q, k, v).to(query.dtype).transpose(1, 2).flatten(2)
