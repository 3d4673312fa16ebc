"""Fits a trained diffusion network to the latents of another autoencoder, without starting over.

A network for 8×8 latents that has to draw 16×16 ones gets one more level outside. Its inner levels, its attention to
the text and its sense of time stay as they are. Only the new outer layers begin from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from training.core.checkpoint import copy_common_part

OUTER_PARTS = ("conv_in.", "conv_norm_out.", "conv_out.")  # they follow the outermost width
TIME_WEIGHT = "time_embedding.linear_1.weight"
# settings of diffusers that may be a list with one value for each level, the outermost first
LEVEL_SETTINGS = (
    "attention_head_dim",
    "num_attention_heads",
    "layers_per_block",
    "cross_attention_dim",
    "only_cross_attention",
    "transformer_layers_per_block",
)
DEFAULT_GROUPS = 32  # diffusers' `norm_num_groups`


def fit_latents(source: UNet2DConditionModel, channels: int, side: int) -> UNet2DConditionModel:
    """Return a network for latents [channels, side, side] with all that it can keep of `source`.

    It returns `source` itself if the latents already fit. The weights of new layers come from torch's generator. Raises
    ValueError if no number of levels fits.
    """
    config = {name: value for name, value in source.config.items() if not name.startswith("_")}
    if config["sample_size"] == side and config["in_channels"] == config["out_channels"] == channels:
        return source
    network = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(fit_config(config, channels, side)))
    _copy_weights(source, network, len(network.config["block_out_channels"]) - len(config["block_out_channels"]))
    return network


def fit_config(config: Mapping[str, Any], channels: int, side: int) -> dict[str, Any]:
    """Return the configuration of a network for other latents. Each new level has half the width of the one within.

    Raises ValueError if no number of levels fits.
    """
    fitted_config = dict(config)
    for _ in range(_count_added_levels(config, side)):
        fitted_config = _add_outer_level(fitted_config)
    time_width = config.get("time_embedding_dim") or 4 * config["block_out_channels"][0]
    return fitted_config | {
        "in_channels": channels,
        "out_channels": channels,
        "sample_size": side,
        "time_embedding_dim": time_width,
    }


def _count_added_levels(config: Mapping[str, Any], side: int) -> int:
    sides = list[int]()
    groups = int(config.get("norm_num_groups") or DEFAULT_GROUPS)
    width = int(config["block_out_channels"][0])
    while width and width % groups == 0:
        sides.append(int(config["sample_size"]) << len(sides))
        width //= 2
    if side not in sides:
        raise ValueError(
            f"The autoencoder's latents have {side}×{side} values, and this network can only learn to draw "
            f"{' or '.join(f'{each}×{each}' for each in sides)}."
        )
    return sides.index(side)


def _add_outer_level(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with one more level outside, without attention: there are too many places for it."""
    per_level = {name: [config[name][0], *config[name]] for name in LEVEL_SETTINGS if _is_list(config.get(name))}
    return {
        **config,
        **per_level,
        "block_out_channels": [config["block_out_channels"][0] // 2, *config["block_out_channels"]],
        "down_block_types": ["DownBlock2D", *config["down_block_types"]],
        "up_block_types": [*config["up_block_types"], "UpBlock2D"],
    }


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


@torch.no_grad()
def _copy_weights(source: UNet2DConditionModel, network: UNet2DConditionModel, added_levels: int) -> None:
    """Copy each tensor of `source` to its new level, as far as the shapes agree."""
    targets = network.state_dict()
    for name, tensor in source.state_dict().items():
        if name == TIME_WEIGHT:
            targets[name].copy_(_halve_frequencies(tensor, added_levels))
        elif not (added_levels and name.startswith(OUTER_PARTS)):
            target = targets.get(_shift_level(name, added_levels))
            if target is not None:
                copy_common_part(tensor, target)  # on the way up, the first are those from within


def _shift_level(name: str, added_levels: int) -> str:
    """Return a tensor's name in the new network. Only the levels on the way down count from outside."""
    if not name.startswith("down_blocks."):
        return name
    prefix, level, rest = name.split(".", 2)
    return f"{prefix}.{int(level) + added_levels}.{rest}"


def _halve_frequencies(weight: Tensor, added_levels: int) -> Tensor:
    """Return the time embedding's first layer for the sinusoids of a narrower network, [rows, width / 2**levels].

    These have every second frequency, for sine and cosine alike. So each takes over its left-out neighbour.
    """
    for _ in range(added_levels):
        rows, width = weight.shape
        weight = weight.view(rows, 2, width // 4, 2).sum(-1).reshape(rows, -1)
    return weight
