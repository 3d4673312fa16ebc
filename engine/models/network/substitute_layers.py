"""Substitute layers: faster than diffusers' own in bfloat16 on a processor, and no less exact.

Torch's bfloat16 kernels for small pictures are slow for channels-last group norm and for attention to few keys.
Substitutes are always used, whatever the batch, so that the bits depend only on the recipe.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn
from torch.nn import functional

MIN_BFLOAT16_KEYS = 64  # keys: from as many on, bfloat16 is faster


def substitute_layers(net: nn.Module) -> None:
    """Replace layers in the network itself; its weights stay."""
    for each in net.modules():
        if type(each) is nn.GroupNorm:
            each.__class__ = _GroupNorm
        elif type(each) is Attention and _is_plain_attention(each):
            each.set_processor(_AttentionProcessor())  # pyright: ignore[reportArgumentType] # it takes any processor


def _is_plain_attention(module: Attention) -> bool:
    """Whether it only attends: no norms inside, no residual."""
    norms = module.spatial_norm, module.group_norm, module.norm_q, module.norm_k, module.norm_cross
    has_extras = any(norms) or module.residual_connection or module.rescale_output_factor != 1
    processor: Any = module.processor
    return type(processor) is AttnProcessor2_0 and not has_extras


class _GroupNorm(nn.GroupNorm):
    """Computes the same sums, on a channels-first copy."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        is_channels_last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
        normalized = super().forward(input.contiguous())
        return normalized.contiguous(memory_format=torch.channels_last) if is_channels_last else normalized


class _AttentionProcessor(AttnProcessor2_0):
    """Attends in float32 where the keys are few."""

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        if attention_mask is not None or hidden_states.dim() != 3:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projections = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        dtype = torch.float32 if context.shape[1] < MIN_BFLOAT16_KEYS else hidden_states.dtype
        q, k, v = (projection.unflatten(-1, (attn.heads, -1)).transpose(1, 2).to(dtype) for projection in projections)
        attended = functional.scaled_dot_product_attention(q, k, v).to(hidden_states.dtype)
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))
