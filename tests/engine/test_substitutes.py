"""Layers in place of diffusers' own: in bfloat16 on a processor alone, always, and no less exact."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from engine.families.nets import placed
from engine.families.stable_diffusion import StableDiffusion
from engine.families.substitutes import substitute_layers
from engine.measurement import probe

CPU = torch.device("cpu")


@torch.inference_mode()
def forward(net: Any, family: StableDiffusion, rows: int) -> torch.Tensor:
    kind = next(net.parameters()).dtype
    x = torch.randn(rows, *family.latent_shape(64, 64), generator=torch.Generator().manual_seed(rows))
    texts = family.condition("cat", probe(family))[0].expand(rows, -1, -1)
    t = torch.linspace(20, 900, rows)
    return net(x.to(kind), t, encoder_hidden_states=texts.to(kind), return_dict=False)[0].float()


def far(some: torch.Tensor, others: torch.Tensor) -> float:
    return float((some - others).square().mean().sqrt())


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_they_are_no_farther_from_float32_than_diffusers_own(embedded: StableDiffusion, rows: int) -> None:
    own = placed(copy.deepcopy(embedded.pipeline.unet), CPU, "bfloat16")
    exact = forward(embedded.net("float32"), embedded, rows)
    ours = far(forward(embedded.net("bfloat16"), embedded, rows), exact)
    assert 0 < ours <= 1.05 * far(forward(own, embedded, rows), exact)


def test_every_norm_and_attention_of_the_embedded_model_is_replaced_in_bfloat16_alone(
    embedded: StableDiffusion,
) -> None:
    def own(net: nn.Module) -> list[str]:
        kinds = [type(each) for each in net.modules() if type(each) is nn.GroupNorm]
        return [str(kind) for kind in kinds] + [
            type(each.processor).__name__ for each in net.modules() if isinstance(each, Attention)
        ]

    assert set(own(embedded.net("bfloat16"))) == {"_Attend"}
    assert set(own(embedded.net("float32"))) == {str(nn.GroupNorm), "AttnProcessor2_0"}


def test_a_norm_gives_its_channels_back_as_they_lay() -> None:
    norm = nn.GroupNorm(2, 4)
    net = nn.Sequential(copy.deepcopy(norm))
    substitute_layers(net)
    first = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    last = first.contiguous(memory_format=torch.channels_last)
    for x in (first, last, first.flatten(2)):
        assert net(x).stride() == x.stride()
        assert torch.allclose(net(x), norm(x), atol=1e-6)


def attention(**options: Any) -> Attention:
    torch.manual_seed(1)
    return Attention(query_dim=8, heads=2, dim_head=4, **options)


@pytest.mark.parametrize("told", [None, 5, 80])
def test_attention_means_the_same(told: int | None) -> None:
    net = nn.Sequential(attention())
    own = copy.deepcopy(net)
    substitute_layers(net)
    x, texts = torch.randn(2, 9, 8), None if told is None else torch.randn(2, told, 8)
    assert type(net[0].processor) is not type(own[0].processor)
    assert torch.allclose(net[0](x, texts), own[0](x, texts), atol=1e-6)
    mask = torch.zeros(2, 9 if told is None else told)
    mask[:, 2:] = -1e4
    assert torch.allclose(net[0](x, texts, mask), own[0](x, texts, mask), atol=1e-6)


@pytest.mark.parametrize("options", [{"residual_connection": True}, {"norm_num_groups": 2}, {"qk_norm": "layer_norm"}])
def test_attention_that_does_more_is_left_alone(options: dict[str, Any]) -> None:
    net = nn.Sequential(attention(**options))
    before = net[0].processor
    substitute_layers(net)
    assert net[0].processor is before
