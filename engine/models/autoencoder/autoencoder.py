"""Latents to pixels and back through a diffusers autoencoder, in the autoencoder's own number format.

Also describes its latent space.
"""

from __future__ import annotations

import copy
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from engine.device.memory import is_out_of_memory, memory_for_pictures
from engine.preview_maps.latent_map import LatentSpace
from engine.process.load_progress import format_size

log = logging.getLogger(__name__)


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
        """Return latents `[rows, 4·channels, height/2, width/2]`, normalised, of the autoencoder's own."""
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


# pixels along a side
TILE = 512
OVERLAP = 128
# a decoder's peak memory in layers of its first block's size; measured
CHANNELS_LAST_LAYERS = 6
CONTIGUOUS_LAYERS = 8
Run = Callable[[], Any]
Decode = Callable[[torch.Tensor], torch.Tensor]
Span = tuple[int, torch.Tensor]  # a tile's first latent along a side, and its weight at each of its pixels


def decode_within_memory(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return pixels `[1, 3, height, width]`, float32, of unscaled latents `[1, channels, height, width]`."""

    def decode(part: torch.Tensor) -> torch.Tensor:
        return vae.decode(part, return_dict=False)[0].float()

    factor = get_pixels_per_latent(vae)
    if factor * max(latents.shape[-2:]) <= TILE:
        return decode(latents)  # a tile would take as much
    return run_within_memory(
        lambda: decode(latents),
        lambda: decode_tiles(decode, latents, factor),
        estimate_decode_bytes(vae, latents),
        latents.device,
        "a decode",
    )


def run_within_memory(run_whole: Run, run_tiles: Run, needed_bytes: int, device: torch.device, work: str) -> Any:
    """Return `run_whole()`, or where memory is short `run_tiles()`. `needed_bytes`: predicted, of the whole."""
    free_bytes = memory_for_pictures(device)
    if needed_bytes <= free_bytes:
        try:
            return run_whole()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    needed = format_size(needed_bytes)
    free = format_size(free_bytes)
    log.warning("%s needs about %s and %s is free: it runs in tiles", work, needed, free)
    return run_tiles()


def estimate_decode_bytes(vae: Any, latents: torch.Tensor) -> int:
    """Predict the memory of a whole decode of `[…, height, width]` besides weights, in bytes; 0 if unknown."""
    channels = list_channels(vae)
    if not channels:
        return 0
    height, width = (side * get_pixels_per_latent(vae) for side in latents.shape[-2:])
    return estimate_peak_layers(vae) * height * width * channels[0] * latents.element_size()


def get_pixels_per_latent(vae: Any) -> int:
    """Return pixels a latent along a side: each block of the decoder but one doubles it."""
    return 2 ** max(0, len(list_channels(vae)) - 1) if list_channels(vae) else 8


def decode_tiles(decode: Decode, latents: torch.Tensor, factor: int) -> torch.Tensor:
    """Return the pixels `[1, 3, factor·height, factor·width]` of latents, by tiles; `factor`: pixels a latent."""
    height, width = latents.shape[-2:]
    tile = max(2, TILE // factor)
    overlap = max(1, OVERLAP // factor)
    pixels = torch.zeros(1, 3, height * factor, width * factor, device=latents.device)
    for top, row_weights in split_into_spans(height, tile, overlap, factor):
        for left, column_weights in split_into_spans(width, tile, overlap, factor):
            decoded = decode(latents[..., top : top + tile, left : left + tile].contiguous())
            weights = (row_weights[:, None] * column_weights).to(decoded.device)
            tile_height, tile_width = weights.shape
            pixels[..., top * factor :, left * factor :][..., :tile_height, :tile_width] += decoded * weights
    return pixels


def split_into_spans(length: int, tile: int, overlap: int, factor: int) -> list[Span]:
    """Return the tiles along a side: equally spaced, of one size. At every pixel their weights sum to one."""
    if length <= tile:
        return [(0, torch.ones(length * factor))]
    count = math.ceil((length - overlap) / (tile - overlap))
    starts = [round(index * (length - tile) / (count - 1)) for index in range(count)]
    ramp = torch.arange(tile * factor, dtype=torch.float64) + 0.5
    weight = torch.minimum(ramp, ramp.flip(0)).clamp(max=overlap * factor)
    total = torch.zeros(length * factor, dtype=torch.float64)
    for start in starts:
        total[start * factor : (start + tile) * factor] += weight
    return [(start, (weight / total[start * factor : (start + tile) * factor]).float()) for start in starts]


def list_channels(vae: Any) -> list[int]:
    """Return the channels of the decoder's blocks, from the pixels' end."""
    config = vae.config
    if (width := config.get("decoder_base_dim") or config.get("base_dim")) and config.get("dim_mult"):
        return [width * factor for factor in config["dim_mult"]]
    return list(config.get("decoder_block_out_channels") or config.get("block_out_channels") or ())


def estimate_peak_layers(vae: Any) -> int:
    """Return a decoder's peak memory in layers: channels-last weights need fewer copies."""
    kernels = [weight for weight in vae.parameters() if weight.dim() == 4 and min(weight.shape) > 1]
    is_channels_last = kernels and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    return CHANNELS_LAST_LAYERS if is_channels_last else CONTIGUOUS_LAYERS


Encode = Callable[[torch.Tensor], torch.Tensor]


def encode_within_memory(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return the encoder's mean `[1, channels, h, w]`, float32 and unscaled, of pixels `[1, 3, height, width]`."""

    def encode(part: torch.Tensor) -> torch.Tensor:
        encoded = vae.encode(part)
        return (encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latent).float()

    factor = get_pixels_per_latent(vae)
    if max(pixels.shape[-2:]) <= TILE or any(side % factor for side in pixels.shape[-2:]):
        return encode(pixels)
    return run_within_memory(
        lambda: encode(pixels),
        lambda: encode_tiles(encode, pixels, factor),
        estimate_encode_bytes(vae, pixels),
        pixels.device,
        "an encode",
    )


def estimate_encode_bytes(vae: Any, pixels: torch.Tensor) -> int:
    """Predict the memory of a whole encode of `[…, height, width]` besides weights, in bytes; 0 if unknown."""
    channels = list(vae.config.get("encoder_block_out_channels") or ()) or list_channels(vae)
    if not channels:
        return 0
    height, width = pixels.shape[-2:]
    return estimate_peak_layers(vae) * height * width * channels[0] * pixels.element_size()


def encode_tiles(encode: Encode, pixels: torch.Tensor, factor: int) -> torch.Tensor:
    """Return latents `[1, channels, h, w]` of pixels `[1, 3, factor·h, factor·w]`, encoded in tiles."""
    height, width = (side // factor for side in pixels.shape[-2:])
    tile = max(2, TILE // factor)
    overlap = max(1, OVERLAP // factor)
    latents: torch.Tensor | None = None
    for top, row_weights in split_into_spans(height, tile, overlap, 1):
        for left, column_weights in split_into_spans(width, tile, overlap, 1):
            part = pixels[..., factor * top : factor * (top + tile), factor * left : factor * (left + tile)]
            encoded = encode(part.contiguous())
            if latents is None:
                latents = encoded.new_zeros(1, encoded.shape[1], height, width)
            weights = (row_weights[:, None] * column_weights).to(encoded.device)
            latents[..., top : top + tile, left : left + tile] += encoded * weights
    assert latents is not None
    return latents


Estimate = Callable[[Any, torch.Tensor], int]


def fit_to_memory(vae: Any) -> None:
    """From now on, let the autoencoder decode and encode in tiles where memory is short. It stays whole without tiles.

    The sides of a tile are diffusers' default; of an `AutoencoderKL`, at most 512 pixels.
    """
    if (tiled := _make_tiled_view(vae)) is None:
        return
    for name, estimate, work in (
        ("decode", estimate_decode_bytes, "a decode"),
        ("encode", estimate_encode_bytes, "an encode"),
    ):
        setattr(vae, name, _choose_by_memory(getattr(vae, name), getattr(tiled, name), vae, estimate, work))


def _choose_by_memory(
    run_whole: Callable[..., Any], run_tiles: Callable[..., Any], vae: Any, estimate: Estimate, work: str
) -> Callable[..., Any]:
    @wraps(run_whole)
    def run(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return run_within_memory(
            lambda: run_whole(tensor, *args, **kwargs),
            lambda: run_tiles(tensor, *args, **kwargs),
            estimate(vae, tensor),
            tensor.device,
            work,
        )

    return run


def _make_tiled_view(vae: Any) -> Any | None:
    """Return the autoencoder with tiling, sharing its layers; None where it cannot tile."""
    tiled = copy.copy(vae)
    try:
        tiled.enable_tiling()
    except (AttributeError, RuntimeError):  # it says that it cannot
        return None
    if isinstance(getattr(tiled, "tile_sample_min_size", None), int) and tiled.tile_sample_min_size > TILE:
        tiled.tile_sample_min_size = TILE
        tiled.tile_latent_min_size = TILE // get_pixels_per_latent(vae)
    return tiled
