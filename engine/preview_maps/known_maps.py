"""The first, rough preview map of a model: published constants for common autoencoders, else a fixed projection.

It is used for the first seconds only, until the model's own map is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from engine.preview_maps.latent_map import LatentMap

MapRows = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class LatentSpace:
    """The latents that an autoencoder's configuration describes."""

    channels: int
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    spatial_factor: int = field(default=8, compare=False)  # pixels per latent, along a side


# Red, green and blue from -1 to 1 for one unit of each channel. From InvokeAI (Apache-2.0), rounded: in its
# invokeai/app/util/step_callback.py, Stable Diffusion 1 and 2 by torridgristle, after keturn and erucipe (thread 23204
# of discuss.huggingface.co); SDXL by StAlKeR7779; the others fitted there.
_SD1: MapRows = ((0.344, 0.139, 0.067), (0.125, 0.403, 0.149), (-0.319, 0.251, 0.210), (-0.131, -0.187, -0.745))
_SDXL: MapRows = ((0.382, 0.493, 0.532), (-0.375, 0.163, 0.174), (0.177, 0.359, -0.205), (-0.435, -0.264, -0.429))
_SD3: MapRows = (
    (-0.052, 0.033, 0.075),
    (-0.058, 0.008, 0.057),
    (0.161, 0.013, -0.038),
    (0.144, 0.085, 0.159),
    (0.049, 0.006, -0.067),
    (0.052, 0.192, 0.063),
    (0.154, 0.048, 0.071),
    (-0.086, 0.090, 0.109),
    (-0.124, -0.068, 0.003),
    (-0.044, 0.078, 0.023),
    (0.031, 0.064, 0.078),
    (-0.013, 0.086, -0.088),
    (0.065, 0.059, 0.133),
    (-0.079, -0.023, -0.128),
    (-0.099, -0.080, -0.063),
    (-0.034, -0.080, -0.061),
)
_FLUX: MapRows = (
    (-0.041, 0.015, 0.052),
    (0.006, 0.029, 0.077),
    (0.034, -0.068, -0.043),
    (-0.026, 0.009, 0.046),
    (0.086, 0.078, 0.055),
    (-0.002, 0.040, 0.016),
    (0.050, 0.106, 0.115),
    (-0.021, -0.022, -0.033),
    (-0.031, 0.008, 0.090),
    (0.085, 0.067, -0.047),
    (-0.053, 0.024, -0.002),
    (0.045, -0.003, 0.005),
    (0.089, 0.083, 0.088),
    (-0.112, -0.030, -0.079),
    (0.003, -0.048, -0.004),
    (-0.115, -0.083, -0.060),
)

KNOWN_MAPS: dict[LatentSpace, MapRows] = {
    LatentSpace(4, 0.18215): _SD1,
    LatentSpace(4, 0.13025): _SDXL,
    LatentSpace(16, 1.5305, 0.0609): _SD3,
    LatentSpace(16, 0.3611, 0.1159): _FLUX,  # Z-Image's, too
}
_UNKNOWN_CONTRAST = 0.25  # share of full brightness per unit of an unknown latent


def rough_map(space: LatentSpace) -> LatentMap:
    """Return the published constants, or a projection that at least shows where latents differ."""
    map_rows = KNOWN_MAPS.get(space)
    if map_rows is None:
        return _unknown_map(space.channels)
    return LatentMap(np.array([*(np.array(map_rows) / 2), [0.5] * 3], dtype=np.float32))


def _unknown_map(channels: int) -> LatentMap:
    """Return a map in which each channel shifts brightness and hue in its own direction."""
    angles = 2 * np.pi * (np.arange(channels)[:, None] / channels + np.arange(3) / 3)
    weights = _UNKNOWN_CONTRAST * (np.cos(angles) + 0.5) / np.sqrt(channels)
    return LatentMap(np.vstack([weights, np.full((1, 3), 0.5)]).astype(np.float32))
