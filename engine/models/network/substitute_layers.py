"""Substitute layers: faster than diffusers' own in bfloat16 on a processor, and no less exact.

Torch's bfloat16 kernels for small pictures are slow for channels-last group norm and for attention to few keys. And a
convolution of a picture that was just doubled multiplies equal pixels again and again. Substitutes are always used,
whatever the batch, so that the bits depend only on the recipe.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional

MIN_BFLOAT16_KEYS = 64  # keys: from as many on, bfloat16 is faster
# Which taps of a 3-tap kernel add up in each tap of the 4-tap kernel that reads the picture before it was doubled.
_SUMMED_TAPS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def substitute_layers(net: nn.Module) -> None:
    """Replace layers in the network itself; its weights stay. Call it in float32: sums of weights are rounded once."""
    for each in list(net.modules()):
        if type(each) is nn.GroupNorm:
            each.__class__ = _GroupNorm
        elif type(each) is Upsample2D and (conv := _find_convolution(each)) is not None:
            each.add_module("transposed_conv", _transpose_convolution(conv))
            each.__class__ = _Upsample
        elif type(each) is Attention and _is_plain_attention(each):
            each.set_processor(_AttentionProcessor())  # pyright: ignore[reportArgumentType] # it takes any processor


def _is_plain_attention(module: Attention) -> bool:
    """Whether it only attends: no norms inside, no residual."""
    norms = module.spatial_norm, module.group_norm, module.norm_q, module.norm_k, module.norm_cross
    has_extras = any(norms) or module.residual_connection or module.rescale_output_factor != 1
    processor: Any = module.processor
    return type(processor) is AttnProcessor2_0 and not has_extras


def _find_convolution(module: Upsample2D) -> nn.Conv2d | None:
    """Return the 3×3 convolution of a layer that only doubles the sides and convolves; None for another layer."""
    conv = getattr(module, "conv", None)
    if type(conv) is not nn.Conv2d or not module.interpolate or module.norm is not None:
        return None
    shape = conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.groups, conv.padding_mode
    return conv if shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") else None


def _transpose_convolution(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """Return the transposed convolution that equals `conv` behind a nearest-neighbour doubling.

    Each pixel of the result reads 2×2 different pixels, not 3×3: 4/9 of the multiplications.
    """
    transposed = nn.ConvTranspose2d(
        conv.in_channels, conv.out_channels, 4, stride=2, padding=1, bias=conv.bias is not None
    )
    taps = torch.tensor(_SUMMED_TAPS)
    transposed.weight = nn.Parameter(torch.einsum("oiab,ka,lb->iokl", conv.weight.detach(), taps, taps))
    transposed.bias = conv.bias
    return transposed.requires_grad_(False)


class _Upsample(Upsample2D):
    """Doubles and convolves in one transposed convolution."""

    transposed_conv: nn.ConvTranspose2d

    def forward(self, hidden_states: torch.Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        if output_size is not None or type(self.conv) is not nn.Conv2d:  # another size, or a LoRA in the convolution
            return super().forward(hidden_states, output_size, *args, **kwargs)
        return self.transposed_conv(hidden_states)


class _GroupNorm(nn.GroupNorm):
    """Computes the same sums, on a channels-first copy."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        is_channels_last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
        normalized = super().forward(input.contiguous())
        return normalized.contiguous(memory_format=torch.channels_last) if is_channels_last else normalized


class _AttentionProcessor(AttnProcessor2_0):
    """Attends in float32 where the keys are few."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        if attention_mask is not None or hidden_states.dim() != 3:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projections = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        dtype = torch.float32 if context.shape[1] < MIN_BFLOAT16_KEYS else hidden_states.dtype
        q, k, v = (projection.unflatten(-1, (attn.heads, -1)).transpose(1, 2).to(dtype) for projection in projections)
        attended = functional.scaled_dot_product_attention(q, k, v).to(hidden_states.dtype)
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))
