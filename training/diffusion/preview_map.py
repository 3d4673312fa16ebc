"""Fits the preview map that a trained model brings along: what its autoencoder decodes, as one matrix product."""

from __future__ import annotations

import numpy as np
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import from_numpy

from engine.output.previewer import choose_map_shape
from engine.preview_maps.latent_map import LatentMap, LatentMapFit
from training.diffusion.sampling import decode_latents

FIT_PICTURES = 512
BATCH = 32


def fit_map_to_decoder(autoencoder: AutoencoderKL, latents: np.ndarray) -> LatentMap:
    """Return the least-squares map from `latents` [n, c, h, w], scaled as the network has them, to decoded pixels.

    Uses `FIT_PICTURES` of them, evenly spread. Raises `numpy.linalg.LinAlgError` where they are not finite.
    """
    chosen = latents[np.linspace(0, len(latents) - 1, min(FIT_PICTURES, len(latents))).astype(int)]
    fit: LatentMapFit | None = None
    for start in range(0, len(chosen), BATCH):
        batch = chosen[start : start + BATCH].astype(np.float32)
        pictures = decode_latents(autoencoder, from_numpy(batch))
        factor = pictures.shape[1] // batch.shape[2]
        reach, patch = choose_map_shape(pictures.shape[1], factor)
        fit = fit or LatentMapFit(batch.shape[1], reach, patch)
        for row, picture in zip(batch, pictures, strict=True):
            fit.add_picture(row, _reduce_picture(picture, patch / factor))
    assert fit is not None, "a training has pictures"
    return fit.solve()


def _reduce_picture(picture: np.ndarray, scale: float) -> np.ndarray:
    height, width, _ = picture.shape
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX), dtype=np.uint8)
