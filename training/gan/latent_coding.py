"""Encodes pictures into latents and decodes them with an autoencoder; measures the latents' noise.

It takes any diffusers autoencoder, and is independent of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import FloatTensor, Tensor


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
    return Posterior(
        torch.cat([posterior.mean for posterior in posteriors]), torch.cat([one.deviation for one in posteriors])
    )


@torch.inference_mode()
def decode_all(autoencoder: AutoencoderKL, latents: Tensor, batch: int = 32) -> Tensor:
    """Decode many latents in small batches, clamped to −1 … 1."""
    return torch.cat([decode_images(autoencoder, part).clamp(-1, 1) for part in torch.split(latents, batch)])
