"""Folds the scale of the latents into the weights, so that `scaling_factor` is 1 and every loader is right.

Knows an autoencoder and pictures; knows nothing of training. The mean and the deviation of each channel move into
quant_conv and post_quant_conv; the decoded pictures do not change.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from engine.training.pictures.pixels import Pixels


@torch.inference_mode()
def latent_scale(autoencoder: AutoencoderKL, pixels: Pixels, most: int = 2048) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each latent channel, over at most `most` pictures, spread evenly."""
    index = np.unique(np.linspace(0, len(pixels) - 1, min(most, len(pixels))).astype(int))
    images, _ = pixels.rows(index)
    means = torch.cat([autoencoder.encode(part, return_dict=False)[0].mean for part in images.split(64)])
    return means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3)).clamp_min(1e-4)


@torch.no_grad()
def fold(autoencoder: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Change the weights so that latents have mean 0 and deviation 1. Raises ValueError without these layers."""
    into, out = _convolution(autoencoder.quant_conv), _convolution(autoencoder.post_quant_conv)
    (into_bias, out_bias), count = (_bias(into), _bias(out)), len(mean)
    out_bias.add_(out.weight[:, :, 0, 0] @ mean)
    out.weight.mul_(deviation.view(1, -1, 1, 1))
    into.weight[:count].div_(deviation.view(-1, 1, 1, 1))
    into_bias[:count].sub_(mean).div_(deviation)
    into_bias[count:].sub_(2 * deviation.log())


def _convolution(layer: nn.Module | None) -> nn.Conv2d:
    if not isinstance(layer, nn.Conv2d):
        raise ValueError("this autoencoder has no quant_conv: its latents cannot be scaled inside the weights")
    return layer


def _bias(layer: nn.Conv2d) -> Tensor:
    if layer.bias is None:
        raise ValueError("this autoencoder's quant_conv has no bias: its latents cannot be moved inside the weights")
    return layer.bias
