"""Lets an unmodified pipeline's autoencoder work in tiles where the whole would exceed the free memory.

The tiles are diffusers' own (`enable_tiling`), on a view of the autoencoder: pictures that fit are decoded as ever.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from engine.models.autoencoder.tiled_decode import TILE, estimate_decode_bytes, get_pixels_per_latent, run_within_memory
from engine.models.autoencoder.tiled_encode import estimate_encode_bytes

log = logging.getLogger(__name__)

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
