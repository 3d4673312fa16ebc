"""The nine channels of an inpainting U-Net: latents, mask, and latents of the picture with grey inside the mask.

As in diffusers' inpainting pipelines; but the picture is encoded as the autoencoder's mean, as all init images are.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.models.pictures.conditioner import Additions

MASK_CHANNELS = 1
ADDITION = "inpainting_channels"  # the additional input of a forward, `[rows, channels, height, width]`


def needs_mask(pipeline: Any) -> bool:
    """Whether the pipeline's U-Net is an inpainting one."""
    net = getattr(pipeline, "unet", None)
    vae = getattr(pipeline, "vae", None)
    if net is None or vae is None:
        return False
    channels = int(vae.config.latent_channels)
    return net.config.out_channels == channels and net.config.in_channels == 2 * channels + MASK_CHANNELS


def add_channels(net: Any, x: torch.Tensor, additions: Additions) -> torch.Tensor:
    """Return latents `[rows, …]` with the channels of mask and masked picture, for a network that takes them.

    Without additional channels all is painted anew, of nothing: so a network is timed or tried without a picture.
    """
    if net.config.in_channels == x.shape[1]:
        return x
    if ADDITION in additions:
        return torch.cat([x, *additions[ADDITION]], dim=1)
    mask = x.new_ones(len(x), MASK_CHANNELS, *x.shape[2:])
    return torch.cat([x, mask, torch.zeros_like(x)], dim=1)
