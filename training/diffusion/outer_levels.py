"""Fits a trained diffusion network to the latents of another autoencoder, without starting over.

A network for 8×8 latents that has to draw 16×16 ones gets one more level outside. Its inner levels and its attention to
the text stay as they are, since they know words and shapes. Only the new outer layers begin from nothing.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

OUTER_PARTS = ("conv_in.", "conv_norm_out.", "conv_out.", "time_embedding.linear_1.")  # they follow the outermost width


def fit_latents(source: UNet2DConditionModel, channels: int, side: int) -> UNet2DConditionModel:
    """Return a network for latents [channels, side, side] with all that it can keep of `source`.

    Each outer level halves the width of the level within. It returns `source` itself if the latents already fit. The
    weights of new layers come from torch's generator. Raises ValueError if no number of levels fits.
    """
    config: dict[str, Any] = {name: value for name, value in source.config.items() if not name.startswith("_")}
    added_levels = _count_added_levels(config, side)
    if not added_levels and config["in_channels"] == config["out_channels"] == channels:
        return source
    time_width = config["time_embedding_dim"] or 4 * config["block_out_channels"][0]
    for _ in range(added_levels):
        config = _add_outer_level(config)
    config |= {"in_channels": channels, "out_channels": channels, "sample_size": side, "time_embedding_dim": time_width}
    network = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(config))
    _copy_weights(source, network, added_levels)
    return network


def _count_added_levels(config: dict[str, Any], side: int) -> int:
    sides: list[int] = []
    width = int(config["block_out_channels"][0])
    while width and width % config["norm_num_groups"] == 0:
        sides.append(int(config["sample_size"]) << len(sides))
        width //= 2
    if side not in sides:
        raise ValueError(
            f"The autoencoder's latents have {side}×{side} values, and this network can only learn to draw "
            f"{' or '.join(f'{each}×{each}' for each in sides)}."
        )
    return sides.index(side)


def _add_outer_level(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with one more level outside, without attention: there are too many places for it."""
    heads = config["attention_head_dim"]
    return config | {
        "block_out_channels": [config["block_out_channels"][0] // 2, *config["block_out_channels"]],
        "down_block_types": ["DownBlock2D", *config["down_block_types"]],
        "up_block_types": [*config["up_block_types"], "UpBlock2D"],
        "attention_head_dim": heads if isinstance(heads, int) else [max(1, heads[0] // 2), *heads],
    }


@torch.no_grad()
def _copy_weights(source: UNet2DConditionModel, network: UNet2DConditionModel, added_levels: int) -> None:
    """Copy each tensor of `source` to its new level, as far as the shapes agree."""
    targets = network.state_dict()
    for name, tensor in source.state_dict().items():
        target = targets.get(_shift_level(name, added_levels))
        if target is not None and not (added_levels and name.startswith(OUTER_PARTS)):
            _copy_common_part(tensor, target)


def _shift_level(name: str, added_levels: int) -> str:
    """Return a tensor's name in the new network. Only the levels on the way down count from outside."""
    if not name.startswith("down_blocks."):
        return name
    prefix, level, rest = name.split(".", 2)
    return f"{prefix}.{int(level) + added_levels}.{rest}"


def _copy_common_part(tensor: Tensor, target: Tensor) -> None:
    """Copy the channels that both have; the first inputs of an outermost layer on the way up are those from within."""
    corner = tuple(slice(0, min(sizes)) for sizes in zip(tensor.shape, target.shape, strict=True))
    target[corner].copy_(tensor[corner])
