"""The large decoder's pictures: drawings composed at 256 px with their captions, and the latents of their small copies.

A picture is a variant of the built-in artwork, rendered four times as large. Its small copy is the mean of each area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from engine.models.autoencoder.large_decoder import LARGE_FACTOR
from engine.models.judge import as_images
from training.gan.latent_coding import encode_all
from training.gan.upscaler_pairs import LARGE_SIDE, MIN_DETAILED_SIDE
from training.pictures.artwork import Artwork
from training.pictures.masked_pictures import ProgressCallback, find_subject
from training.pictures.variants import Variant, render_variant

ENCODE_BATCH = 128


@dataclass(frozen=True)
class TwoSizePictures:
    """`large` uint8 [n, 256, 256, 3], `small` uint8 [n, 64, 64, 3], and each picture's caption."""

    large: np.ndarray
    small: np.ndarray
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.large)


@dataclass(frozen=True)
class DecoderPictures:
    """Large pictures with the latents of their small copies, unscaled as the decoder takes them.

    `means`, `deviations` [n, c, h, w] are the encoder's. `denoised` fp16 [n, c, h, w] has a diffusion network's errors.
    `subject_masks` bool [n, 64, 64].
    """

    large: np.ndarray
    subject_masks: np.ndarray
    means: Tensor
    deviations: Tensor
    denoised: np.ndarray

    def __len__(self) -> int:
        return len(self.large)

    @property
    def scale(self) -> int:
        """Return pixels a latent along a side."""
        return self.large.shape[1] // self.means.size(-1)

    def read_denoised(self, index: np.ndarray) -> Tensor:
        """Return the denoised latents of these pictures, fp32 [n, c, h, w]."""
        return torch.from_numpy(self.denoised[index]).float()

    def read_crops(self, index: np.ndarray, corners: np.ndarray, side: int) -> tuple[Tensor, Tensor]:
        """Return crops of `side` latents from `corners` [n, 2] (top, left, in latents): pictures and subject masks.

        fp32 [n, 3, scale·side, scale·side] from −1 to 1, and [n, 1, scale·side, scale·side] of 0 or 1.
        """
        images = _crop_all(self.large, index, corners, side, self.scale)
        masks = _crop_all(self.subject_masks, index, corners, side, self.scale // LARGE_FACTOR)
        return as_images(images), F.interpolate(torch.from_numpy(masks[:, None]).float(), scale_factor=LARGE_FACTOR)


def render_large_variants(
    drawings: Sequence[Artwork],
    count: int,
    first_number: int,
    seed: int,
    on_progress: ProgressCallback = lambda finished, total: None,
) -> TwoSizePictures:
    """Render `count` variants of the drawings with enough detail, in turn, numbered from `first_number`.

    Raises ValueError if no drawing has enough detail.
    """
    detailed = [drawing for drawing in drawings if max(drawing.pixels.size) >= MIN_DETAILED_SIDE]
    if not detailed:
        raise ValueError(f"no drawing has {MIN_DETAILED_SIDE} pixels a side: there is nothing to learn detail from")
    order = np.random.default_rng([seed, first_number]).permutation(len(detailed))
    variants = list[Variant]()
    for number in range(count):
        drawing = detailed[int(order[number % len(detailed)])]
        variants.append(render_variant(drawing, first_number + number // len(detailed), seed, LARGE_SIDE))
        on_progress(len(variants), count)
    return TwoSizePictures(
        np.stack([variant.pixels for variant in variants]),
        np.stack([shrink_by_area(variant.pixels) for variant in variants]),
        tuple(variant.caption for variant in variants),
    )


def shrink_by_area(picture: np.ndarray) -> np.ndarray:
    """Return a picture uint8 [h, w, 3] at a quarter of its sides, each pixel the mean of its area."""
    return np.asarray(Image.fromarray(picture).reduce(LARGE_FACTOR))


def encode_large_pictures(
    autoencoder: AutoencoderKL, pictures: TwoSizePictures, denoised: np.ndarray
) -> DecoderPictures:
    """Encode the small copies, and add their denoised latents [n, c, h, w]."""
    device = next(autoencoder.parameters()).device
    means = list[Tensor]()
    deviations = list[Tensor]()
    for start in range(0, len(pictures), ENCODE_BATCH):
        posterior = encode_all(autoencoder, as_images(pictures.small[start : start + ENCODE_BATCH]).to(device))
        means.append(posterior.mean.cpu())
        deviations.append(posterior.deviation.cpu())
    masks = np.stack([find_subject(picture) for picture in pictures.small])
    return DecoderPictures(pictures.large, masks, torch.cat(means), torch.cat(deviations), denoised)


def _crop_all(pixels: np.ndarray, index: np.ndarray, corners: np.ndarray, side: int, scale: int) -> np.ndarray:
    crops = list[np.ndarray]()
    for row, (top, left) in zip(index, corners * scale, strict=True):
        crops.append(pixels[row, top : top + side * scale, left : left + side * scale])
    return np.stack(crops)
