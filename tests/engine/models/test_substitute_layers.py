"""Substitutes for diffusers' layers: only in bfloat16 on a processor, everywhere there, and no less exact."""

from __future__ import annotations

import copy
import itertools
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.upsampling import Upsample2D
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from engine.calibration.measurement import probe_recipe
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.network.network_copies import place_network, substitute_layers

CPU = torch.device("cpu")


def is_substitute(layer: nn.Module) -> bool:
    owner = layer.processor if isinstance(layer, Attention) else layer
    return type(owner).__module__ == substitute_layers.__module__


@torch.inference_mode()
def forward(net: Any, family: StableDiffusion, rows: int, seed: int) -> torch.Tensor:
    kind = next(net.parameters()).dtype
    x = torch.randn(rows, *family.latent_shape(64, 64), generator=torch.Generator().manual_seed(seed))
    texts = family.encode_conditioning("cat", probe_recipe(family))[0].expand(rows, -1, -1)
    t = torch.linspace(20, 900, rows)
    return net(x.to(kind), t, encoder_hidden_states=texts.to(kind), return_dict=False)[0].float()


def squared_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first.float() - second.float()).square().sum())


def place_original(embedded: StableDiffusion) -> nn.Module:
    return place_network(copy.deepcopy(embedded.pipeline.unet), CPU, "bfloat16")


def test_each_substitute_is_as_close_to_float32_as_diffusers_layer(embedded: StableDiffusion) -> None:
    """On activations of the real network: that amplifies a rounding, one layer does not, so the bound is narrow."""
    float32_network = embedded.get_network("float32")
    nets = embedded.get_network("bfloat16"), place_original(embedded)
    errors = {name: [0.0, 0.0] for name, layer in nets[0].named_modules() if is_substitute(layer)}

    def compare_layers(name: str, layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        inputs = [*map(torch.Tensor.bfloat16, filter(torch.is_tensor, (*args, *options.values())))]
        exact = layer.forward(*(each.float() for each in inputs))
        for position, net in enumerate(nets):
            errors[name][position] += squared_difference(net.get_submodule(name)(*inputs), exact)

    hooks = [
        float32_network.get_submodule(name).register_forward_pre_hook(partial(compare_layers, name), with_kwargs=True)
        for name in errors
    ]
    for rows in (1, 2, 7):
        forward(float32_network, embedded, rows, rows)
    for hook in hooks:
        hook.remove()
    assert errors
    assert all(0 < ours <= 1.02**2 * original for ours, original in errors.values()), errors


@pytest.mark.slow
def test_the_whole_network_is_as_close_to_float32_as_with_diffusers_layers(embedded: StableDiffusion) -> None:
    """Narrowly over all noises, loosely for each: one noise's ratio scatters, for roundings as good as diffusers'."""
    nets = (embedded.get_network("bfloat16"), place_original(embedded))
    errors = list[tuple[float, float]]()
    for rows, seed in [*itertools.product((1, 2), range(8)), (7, 8), (7, 9)]:
        exact = forward(embedded.get_network("float32"), embedded, rows, seed)
        ours, original = (squared_difference(forward(net, embedded, rows, seed), exact) for net in nets)
        errors.append((ours, original))
    assert all(0 < ours <= 1.15**2 * original for ours, original in errors), errors
    assert sum(ours for ours, _ in errors) <= 1.03**2 * sum(original for _, original in errors)


def test_every_norm_and_attention_is_replaced_in_bfloat16_only(embedded: StableDiffusion) -> None:
    def replaceable_layers(net: nn.Module) -> list[str]:
        kinds = [type(each) for each in net.modules() if type(each) is nn.GroupNorm]
        return [str(kind) for kind in kinds] + [
            type(each.processor).__name__ for each in net.modules() if isinstance(each, Attention)
        ]

    assert set(replaceable_layers(embedded.get_network("bfloat16"))) == {"_AttentionProcessor"}
    assert set(replaceable_layers(embedded.get_network("float32"))) == {str(nn.GroupNorm), "AttnProcessor2_0"}


def test_a_substituted_norm_keeps_the_memory_layout() -> None:
    norm = nn.GroupNorm(2, 4)
    net = nn.Sequential(copy.deepcopy(norm))
    substitute_layers(net)
    first = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    last = first.contiguous(memory_format=torch.channels_last)
    for x in (first, last, first.flatten(2)):
        assert net(x).stride() == x.stride()
        assert torch.allclose(net(x), norm(x), atol=1e-6)


def build_attention(**options: Any) -> Attention:
    torch.manual_seed(1)
    return Attention(query_dim=8, heads=2, dim_head=4, **options)


@pytest.mark.parametrize("token_count", [None, 5, 80])
def test_substituted_attention_gives_the_same_result(token_count: int | None) -> None:
    net = nn.Sequential(build_attention())
    original = copy.deepcopy(net)
    substitute_layers(net)
    x = torch.randn(2, 9, 8)
    texts = None if token_count is None else torch.randn(2, token_count, 8)
    assert type(net[0].processor) is not type(original[0].processor)
    assert torch.allclose(net[0](x, texts), original[0](x, texts), atol=1e-6)
    mask = torch.zeros(2, 9 if token_count is None else token_count)
    mask[:, 2:] = -1e4
    assert torch.allclose(net[0](x, texts, mask), original[0](x, texts, mask), atol=1e-6)


def build_upsample(**options: Any) -> nn.Sequential:
    torch.manual_seed(1)
    settings: dict[str, Any] = {"use_conv": True} | options
    return nn.Sequential(Upsample2D(8, **settings))


def test_a_substituted_upsample_gives_the_same_result() -> None:
    net = build_upsample(out_channels=6)
    original = copy.deepcopy(net)
    substitute_layers(net)
    assert type(net[0]) is not Upsample2D
    for x in (torch.randn(2, 8, 5, 3), torch.randn(1, 8, 1, 1).contiguous(memory_format=torch.channels_last)):
        assert torch.allclose(net[0](x), original[0](x), atol=1e-6)
        assert torch.allclose(net[0](x, (7, 9)), original[0](x, (7, 9)), atol=1e-6)  # not twice the size


def test_a_substituted_upsample_honours_a_lora_in_its_convolution() -> None:
    net = build_upsample()
    x = torch.randn(2, 8, 5, 3)
    original = copy.deepcopy(net)
    substitute_layers(net)
    config = LoraConfig(r=2, target_modules=["0.conv"], init_lora_weights=False)
    outputs = [inject_adapter_in_model(config, each)(x) for each in (net, original) if torch.manual_seed(3)]
    assert torch.allclose(outputs[0], outputs[1], atol=1e-6)
    assert not torch.allclose(outputs[0], build_upsample()(x), atol=1e-3)


@pytest.mark.parametrize("options", [{"use_conv": False}, {"kernel_size": 1, "padding": 0}, {"norm_type": "ln_norm"}])
def test_an_upsample_with_extra_options_is_not_replaced(options: dict[str, Any]) -> None:
    net = build_upsample(**options)
    substitute_layers(net)
    assert type(net[0]) is Upsample2D


@pytest.mark.parametrize("options", [{"residual_connection": True}, {"norm_num_groups": 2}, {"qk_norm": "layer_norm"}])
def test_attention_with_extra_options_is_not_replaced(options: dict[str, Any]) -> None:
    net = nn.Sequential(build_attention(**options))
    before = net[0].processor
    substitute_layers(net)
    assert net[0].processor is before
