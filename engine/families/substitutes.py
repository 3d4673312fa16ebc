"""What a processor computes sooner than diffusers' own layers do in bfloat16, and no less exactly.

Torch's kernels for small pictures are slow in that number format: the norm of groups where channels lie last, and
attention to few keys. Each is computed another way instead, always and whatever the batch, so that the bits depend on
the recipe alone. Knows modules and shapes; no model.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn
from torch.nn import functional

FEW = 64  # keys: of as many or more, bfloat16 is sooner


def substitute_layers(net: nn.Module) -> None:
    """In the network itself; its weights stay what they are."""
    for each in net.modules():
        if type(each) is nn.GroupNorm:
            each.__class__ = _GroupNorm
        elif type(each) is Attention and _is_plain(each):
            each.set_processor(_Attend())  # pyright: ignore[reportArgumentType] # it takes any processor


def _is_plain(module: Attention) -> bool:
    """Whether it does nothing but attend: no norms within, no sum with its input."""
    norms = module.spatial_norm, module.group_norm, module.norm_q, module.norm_k, module.norm_cross
    within = any(norms) or module.residual_connection or module.rescale_output_factor != 1
    return type(module.processor) is AttnProcessor2_0 and not within


class _GroupNorm(nn.GroupNorm):
    """The same sums, over channels that lie first for as long."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
        normed = super().forward(input.contiguous())
        return normed.contiguous(memory_format=torch.channels_last) if last else normed


class _Attend(AttnProcessor2_0):
    """In float32 where the keys are few."""

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        if attention_mask is not None or hidden_states.dim() != 3:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        told = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        read = attn.to_q(hidden_states), attn.to_k(told), attn.to_v(told)
        wide = torch.float32 if told.shape[1] < FEW else hidden_states.dtype
        q, k, v = (each.unflatten(-1, (attn.heads, -1)).transpose(1, 2).to(wide) for each in read)
        seen = functional.scaled_dot_product_attention(q, k, v).to(hidden_states.dtype)
        return attn.to_out[0](seen.transpose(1, 2).flatten(2))
