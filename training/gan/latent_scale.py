"""Folds the scale of the latents into the weights, so that `scaling_factor` is 1 and every loader is right.

It is independent of training. The mean and the deviation of each channel move into quant_conv and post_quant_conv; the
decoded pictures do not change.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from training.pictures.masked_pictures import MaskedPictures


@torch.inference_mode()
def measure_latent_scale(
    autoencoder: AutoencoderKL, pixels: MaskedPictures, max_pictures: int = 2048
) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each latent channel, over at most `max_pictures`, spread evenly."""
    index = np.unique(np.linspace(0, len(pixels) - 1, min(max_pictures, len(pixels))).astype(int))
    images, _ = pixels.read_rows(index)
    batches = torch.split(images.to(next(autoencoder.parameters()).device), 64)
    means = torch.cat([autoencoder.encode(batch, return_dict=False)[0].mean for batch in batches])
    return means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3)).clamp_min(1e-4)


@torch.no_grad()
def fold_scale(autoencoder: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Change the weights so that latents have mean 0 and deviation 1. Raises ValueError without these layers."""
    encoder_layer = _require_convolution(autoencoder.quant_conv)
    decoder_layer = _require_convolution(autoencoder.post_quant_conv)
    (encoder_bias, decoder_bias), channel_count = (
        (_require_bias(encoder_layer), _require_bias(decoder_layer)),
        len(mean),
    )
    decoder_bias.add_(decoder_layer.weight[:, :, 0, 0] @ mean)
    decoder_layer.weight.mul_(deviation.view(1, -1, 1, 1))
    encoder_layer.weight[:channel_count].div_(deviation.view(-1, 1, 1, 1))
    encoder_bias[:channel_count].sub_(mean).div_(deviation)
    encoder_bias[channel_count:].sub_(2 * deviation.log())


def _require_convolution(layer: nn.Module | None) -> nn.Conv2d:
    if not isinstance(layer, nn.Conv2d):
        raise ValueError("this autoencoder has no quant_conv: its latents cannot be scaled inside the weights")
    return layer


def _require_bias(layer: nn.Conv2d) -> Tensor:
    if layer.bias is None:
        raise ValueError("this autoencoder's quant_conv has no bias: its latents cannot be moved inside the weights")
    return layer.bias
