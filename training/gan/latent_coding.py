"""Encodes pictures into latents and decodes them with any diffusers autoencoder; measures their noise and their scale.

It is independent of training. `fold_scale` moves the mean and the deviation of each channel into quant_conv and
post_quant_conv. Then `scaling_factor` is 1, every loader is right, and the decoded pictures do not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import FloatTensor, Tensor, nn

from training.core.learner import spread_rows
from training.pictures.masked_pictures import MaskedPictures


@dataclass(frozen=True)
class Posterior:
    """The encoder's distribution for some pictures: mean and deviation of their latents."""

    mean: Tensor
    deviation: Tensor

    @property
    def signal(self) -> float:
        """Return the standard deviation of a channel's means, averaged over the channels."""
        return float(self.mean.detach().transpose(0, 1).flatten(1).std(1).mean())

    @property
    def noise(self) -> float:
        return float(self.deviation.detach().mean())

    @property
    def noise_to_signal(self) -> float:
        return self.noise / max(self.signal, 1e-12)

    @property
    def divergence(self) -> Tensor:
        """Return the KL divergence from the normal distribution, in nats for each number."""
        return (self.mean.square() + self.deviation.square() - 1 - 2 * self.deviation.log()).mean() / 2


def encode_pictures(autoencoder: AutoencoderKL, images: Tensor) -> Posterior:
    """Return the posterior in fp32."""
    distribution = autoencoder.encode(images, return_dict=False)[0]
    return Posterior(distribution.mean.float(), distribution.std.float())


def decode_images(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode latents to [n, 3, h, w], not clamped."""
    return autoencoder.decode(cast(FloatTensor, latents), return_dict=False)[0]


@torch.inference_mode()
def round_trip(autoencoder: AutoencoderKL, images: Tensor, batch: int = 32) -> Tensor:
    """Encode the pictures to the posterior's mean and decode it, fp32."""
    return decode_all(autoencoder, encode_all(autoencoder, images, batch).mean, batch)


@torch.inference_mode()
def encode_all(autoencoder: AutoencoderKL, images: Tensor, batch: int = 32) -> Posterior:
    """Encode many pictures in small batches."""
    posteriors = [encode_pictures(autoencoder, part) for part in torch.split(images, batch)]
    means = torch.cat([posterior.mean for posterior in posteriors])
    return Posterior(means, torch.cat([posterior.deviation for posterior in posteriors]))


@torch.inference_mode()
def decode_all(autoencoder: AutoencoderKL, latents: Tensor, batch: int = 32) -> Tensor:
    """Decode many latents in small batches, clamped to −1 … 1."""
    return torch.cat([decode_images(autoencoder, part).clamp(-1, 1) for part in torch.split(latents, batch)])


@torch.inference_mode()
def measure_latent_scale(
    autoencoder: AutoencoderKL, pixels: MaskedPictures, max_pictures: int = 2048
) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each latent channel, over at most `max_pictures`, spread evenly."""
    index = np.unique(spread_rows(len(pixels), max_pictures))
    images, _ = pixels.read_rows(index)
    batches = torch.split(images.to(next(autoencoder.parameters()).device), 64)
    means = torch.cat([autoencoder.encode(batch, return_dict=False)[0].mean for batch in batches])
    return means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3)).clamp_min(1e-4)


@torch.no_grad()
def fold_scale(autoencoder: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Change the weights so that latents have mean 0 and deviation 1. Raises ValueError without these layers."""
    encoder_layer = _require_convolution(autoencoder.quant_conv)
    decoder_layer = _require_convolution(autoencoder.post_quant_conv)
    encoder_bias, decoder_bias = _require_bias(encoder_layer), _require_bias(decoder_layer)
    channel_count = len(mean)
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
