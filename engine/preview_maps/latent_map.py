"""Linear maps from latents to pixels: cheap previews and thumbnails without the autoencoder. Pure numpy.

A map reads each latent, or each with its eight neighbours, and returns a patch of pixels.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from engine.process.system import write_atomically

FloatArray = npt.NDArray[np.float32]
MatrixProduct = Callable[[FloatArray, FloatArray], FloatArray]  # of two matrices

RIDGE_FACTOR = 1e-3  # for linearly dependent channels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatentMap:
    """`weights`: `[channels·reach² + 1, 3·patch²]`. `reach`: side of the square of latents that it reads, 1 or 3."""

    weights: FloatArray
    reach: int = 1
    patch: int = 1

    @property
    def channels(self) -> int:
        """The number of channels of its latents."""
        return (len(self.weights) - 1) // self.reach**2

    def render(self, latents: FloatArray, multiply: MatrixProduct = np.matmul) -> npt.NDArray[np.uint8]:
        """Return RGB `[height·patch, width·patch, 3]` of latents `[channels, height, width]`."""
        _, height, width = latents.shape
        colours = multiply(latent_features(latents, self.reach), self.weights)
        patches = colours.reshape(height, width, self.patch, self.patch, 3)
        picture = patches.transpose(0, 2, 1, 3, 4).reshape(height * self.patch, width * self.patch, 3)
        return (np.fmin(np.fmax(picture, 0.0), 1.0) * 255.0 + 0.5).astype(np.uint8)  # NaN becomes black


class LatentMapFit:
    """A least-squares fit of a map. It takes one picture at a time, so that other work can run in between."""

    def __init__(self, channels: int, reach: int, patch: int) -> None:
        self._reach = reach
        self._patch = patch
        size = channels * reach * reach + 1
        self._gram = np.zeros((size, size))
        self._moments = np.zeros((size, 3 * patch * patch))
        self._latent_count = 0

    def add_picture(self, latents: FloatArray, pixels: npt.NDArray[np.uint8]) -> None:
        """Add a picture: `pixels` `[height·patch, width·patch, 3]` of these latents."""
        height, width, patch = *latents.shape[1:], self._patch
        patches = pixels.reshape(height, patch, width, patch, 3).transpose(0, 2, 1, 3, 4)
        colours = patches.reshape(height * width, -1) / 255.0
        features = latent_features(latents, self._reach).astype(np.float64)
        self._gram += features.T @ features
        self._moments += features.T @ colours
        self._latent_count += len(features)

    def solve(self) -> LatentMap:
        """Return the map. Raises `numpy.linalg.LinAlgError` if the latents are not finite."""
        ridge = RIDGE_FACTOR * self._latent_count * np.eye(len(self._gram))
        weights = np.linalg.solve(self._gram + ridge, self._moments)
        if not np.isfinite(weights).all():
            raise np.linalg.LinAlgError("the latents are not finite")
        return LatentMap(weights.astype(np.float32), self._reach, self._patch)


def latent_features(latents: FloatArray, reach: int) -> FloatArray:
    """Return `[height·width, channels·reach² + 1]`: each latent with its neighbours, and a one for the constant."""
    channels, height, width = map(int, latents.shape)
    margin = reach // 2
    row_indices, column_indices = (np.arange(-margin, side + margin).clip(0, side - 1) for side in (height, width))
    padded = latents[:, row_indices[:, None], column_indices]  # like numpy's own padding, in a fifth of its time
    windows = np.lib.stride_tricks.sliding_window_view(padded, (reach, reach), axis=(1, 2))
    features = np.ones((height * width, channels * reach * reach + 1), dtype=np.float32)
    features[:, :-1] = windows.transpose(1, 2, 0, 3, 4).reshape(height * width, -1)
    return features


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


FOLDER = "previews"  # in the data folder
MODEL_MAP_FILE = "preview_map.safetensors"  # in a model's folder
FORMAT_VERSION = 1  # raise it when the fit changes, to discard older maps, those in models' folders too
MAX_FILE_BYTES = 4 * 1024 * 1024  # bytes of a file


class MapStore:
    """An unreadable file counts as missing; a map that cannot be written is fitted again at the next start."""

    def __init__(self, data: Path) -> None:
        self._folder = data / FOLDER

    def load_map(self, revision: str, channels: int, reach: int, patch: int) -> LatentMap | None:
        """Return the map of this revision and shape, if there is one."""
        return read_map(self._path_of(revision), channels, reach, patch)

    def save_map(self, revision: str, latent_map: LatentMap) -> None:
        """Store the map atomically."""
        path = self._path_of(revision)
        try:
            write_map(path, latent_map)
        except OSError as error:
            log.warning("a preview map cannot be stored in %s, the next start fits it again: %s", path, error)

    def _path_of(self, revision: str) -> Path:
        return self._folder / f"{hashlib.sha256(revision.encode()).hexdigest()[:16]}.safetensors"


def read_map(path: Path, channels: int, reach: int, patch: int) -> LatentMap | None:
    """Return a file's map of this shape; None where there is none, or none that can be used."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError("it is too large")
        with cast(Any, safe_open)(path, framework="numpy") as file:
            weights: FloatArray = file.get_tensor("weights")
            metadata: dict[str, str] = file.metadata() or {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, SafetensorError) as error:
        log.warning("the preview map in %s cannot be read, fitting anew: %s", path.name, error)
        return None
    shape = (channels * reach**2 + 1, 3 * patch**2)
    if metadata.get("form") != _format_key(reach, patch) or weights.shape != shape or not np.isfinite(weights).all():
        return None
    return LatentMap(weights.astype(np.float32), reach, patch)


def write_map(path: Path, latent_map: LatentMap) -> None:
    """Write a map atomically. Raises OSError."""
    metadata = {"form": _format_key(latent_map.reach, latent_map.patch)}
    write_atomically(path, save({"weights": latent_map.weights}, metadata))


def _format_key(reach: int, patch: int) -> str:
    return f"{FORMAT_VERSION} {reach} {patch}"
