"""Latents to pixels and back through a diffusers autoencoder, in the autoencoder's own number format.

Also describes its latent space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from engine.models.autoencoder.tiled_decode import decode_within_memory, encode_within_memory
from engine.preview_maps.latent_map import LatentSpace


def decode_latents(vae: Any, latents: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return pixels `[1, 3, height, width]` in -1…1, float32, of scaled latents `[channels, height, width]`."""
    scaled = latents[None].to(device, torch.float32) / vae.config.scaling_factor + get_shift(vae.config)
    with avoid_overflow(vae):
        return decode_within_memory(vae, scaled.to(vae.dtype))


def encode_pixels(vae: Any, pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return scaled latents `[channels, height, width]`, float32: the encoder's mean for pixels in -1…1."""
    with avoid_overflow(vae):
        mean = encode_within_memory(vae, pixels.to(device, vae.dtype))[0]
    return (mean - get_shift(vae.config)) * vae.config.scaling_factor


@contextmanager
def avoid_overflow(vae: Any) -> Generator[None]:
    """Use float32 for an autoencoder whose configuration says that float16 overflows, as diffusers does for SDXL."""
    overflows = vae.dtype == torch.float16 and bool(vae.config.get("force_upcast"))
    if overflows:
        torch.nn.Module.to(vae, torch.float32)
    try:
        yield
    finally:
        if overflows:
            torch.nn.Module.to(vae, torch.float16)


def make_latent_space(config: Any, pixels_per_latent: int) -> LatentSpace:
    """Return the latent space. `pixels_per_latent`: along a side."""
    return LatentSpace(int(config.latent_channels), float(config.scaling_factor), get_shift(config), pixels_per_latent)


def get_shift(config: Any) -> float:
    """Return the shift of an autoencoder's latents."""
    return float(config.get("shift_factor") or 0.0)


PATCH = 2  # side of a patch of latents that Flux.2 sees as one


class LatentAdapter(torch.nn.Module, ABC):
    """Holds the pipeline's autoencoder, whose weights it shares. `config` describes the adapted latents."""

    def __init__(self, autoencoder: Any, latent_channels: int, block_out_channels: tuple[int, ...]) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.config = FrozenDict(
            latent_channels=latent_channels, scaling_factor=1.0, shift_factor=0.0, block_out_channels=block_out_channels
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.autoencoder.dtype

    def encode(self, pixels: torch.Tensor) -> Any:
        """Return an object whose `latent_dist.mean` is the latents of pixels `[rows, 3, height, width]` in -1…1."""
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=self._encode_mean(pixels)))

    def decode(self, latents: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        """Return pixels `[rows, 3, height, width]` in -1…1."""
        return (self._decode_pixels(latents),)

    @abstractmethod
    def _encode_mean(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the encoder's mean as adapted latents."""

    @abstractmethod
    def _decode_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the pixels of adapted latents."""


class PatchedAutoencoder(LatentAdapter):
    """Flux.2's: two by two latents are one, normalised by the running statistics of a batch norm without weights."""

    def __init__(self, autoencoder: Any) -> None:
        config = autoencoder.config
        decoder_widths = tuple(config.get("decoder_block_out_channels") or config.block_out_channels)
        # The patch counts as one more level without work of its own.
        super().__init__(autoencoder, config.latent_channels * PATCH**2, (decoder_widths[0], *decoder_widths))

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Return patched, normalised latents of the autoencoder's own."""
        mean, deviation = self._get_statistics(latents)
        return (pixel_unshuffle(latents, PATCH) - mean) / deviation

    def _encode_mean(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.normalize(self.autoencoder.encode(pixels).latent_dist.mean)

    def _decode_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        mean, deviation = self._get_statistics(latents)
        return self.autoencoder.decode(pixel_shuffle(latents * deviation + mean, PATCH), return_dict=False)[0]

    def _get_statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        norm = self.autoencoder.bn
        epsilon = self.autoencoder.config.batch_norm_eps
        mean = norm.running_mean.view(1, -1, 1, 1)
        variance = norm.running_var.view(1, -1, 1, 1)
        return mean.to(latents), torch.sqrt(variance + epsilon).to(latents)


class StillAutoencoder(LatentAdapter):
    """Qwen-Image's, made for films: a picture is a film of one frame. Each channel has a mean and a deviation."""

    def __init__(self, autoencoder: Any) -> None:
        config = autoencoder.config
        widths = tuple(int(config.base_dim) * int(factor) for factor in config.dim_mult)
        super().__init__(autoencoder, int(config.z_dim), widths)

    def _encode_mean(self, pixels: torch.Tensor) -> torch.Tensor:
        latents = self.autoencoder.encode(pixels.unsqueeze(2)).latent_dist.mean[:, :, 0]
        mean, deviation = self._get_statistics(latents)
        return (latents - mean) / deviation

    def _decode_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        mean, deviation = self._get_statistics(latents)
        return self.autoencoder.decode((latents * deviation + mean).unsqueeze(2), return_dict=False)[0][:, :, 0]

    def _get_statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.autoencoder.config
        mean, deviation = (
            latents.new_tensor(each).view(1, -1, 1, 1) for each in (config.latents_mean, config.latents_std)
        )
        return mean, deviation
