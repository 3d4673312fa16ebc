"""Linear maps from latents to pixels: cheap previews and thumbnails without the autoencoder. Pure numpy.

A map reads each latent, or each with its eight neighbours, and returns a patch of pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
MatrixProduct = Callable[[FloatArray, FloatArray], FloatArray]  # of two matrices

RIDGE_FACTOR = 1e-3  # for linearly dependent channels


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
