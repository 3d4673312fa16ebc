"""The measures of the evaluation: pure functions of pictures or of the judge's output, without a model or files.

Pictures are uint8 [n, h, w, 3], or one of them; shares are in percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.models.judge import as_images
from training.gan.losses import psnr
from training.pictures.variants import BACKGROUND_COLOURS, find_dominant_hue, nearest_hue

MIN_SUBJECT_DISTANCE = 40.0  # minimum distance of a subject's pixel from the background, in steps of 255
MAX_DUPLICATE_DISTANCE = 3.0  # two pictures closer than this, in steps of 255, look the same
COMPARISON_SIDE = 32  # the side at which pictures are compared; finer differences come from the decoder


def retrieval_at(scores: Tensor, targets: Tensor, count: int) -> float:
    """Return the percentage of rows of `scores` [n, labels] whose wanted label [n] is among the best `count`."""
    return retrieval_of_any_at(scores, [(int(target),) for target in targets], count)


def retrieval_of_any_at(scores: Tensor, target_sets: Sequence[Sequence[int]], count: int) -> float:
    """Return the same if any of several labels counts as a hit."""
    top_labels = cast(list[list[int]], scores.topk(min(count, scores.size(1)), dim=1).indices.tolist())
    hits = [not set(targets).isdisjoint(row) for targets, row in zip(target_sets, top_labels, strict=True)]
    return percent_of_hits(hits)


def best_places(scores: Tensor, target_sets: Sequence[Sequence[int]]) -> list[int]:
    """Return the place (1: first) of the best of each row's wanted labels in `scores` [n, labels]."""
    return [1 + int((row > row[list(targets)].max()).sum()) for row, targets in zip(scores, target_sets, strict=True)]


def percent_of_hits(hits: Sequence[bool]) -> float:
    """Return the hits in percent; NaN if there are none to count."""
    return 100 * sum(hits) / len(hits) if hits else math.nan


def masked_psnr(real: np.ndarray, reconstructed: np.ndarray, masks: np.ndarray) -> Tensor:
    """Return the PSNR in dB inside each mask (bool [n, h, w]), at most 100, for pictures whose mask is not empty.

    Raises ValueError if all masks are empty.
    """
    inside = masks.any(axis=(1, 2))
    if not inside.any():
        raise ValueError("No picture has a pixel inside its mask.")
    masked = torch.from_numpy(masks[inside])[:, None].float()
    return psnr(as_images(reconstructed[inside]), as_images(real[inside]), masked)


def border_colour(picture: np.ndarray) -> np.ndarray:
    """Return the median colour of the outermost two pixels: the background, even if the subject reaches the edge."""
    ring = np.ones(picture.shape[:2], dtype=bool)
    ring[2:-2, 2:-2] = False
    return np.median(picture[ring].astype(np.float64), axis=0)


def nearest_background(picture: np.ndarray) -> str:
    """Return the name of the background that is nearest to the border's colour."""
    colour = border_colour(picture)
    return min(BACKGROUND_COLOURS, key=lambda name: float(((colour - BACKGROUND_COLOURS[name]) ** 2).sum()))


def name_subject_hue(picture: np.ndarray) -> str | None:
    """Return the named hue of the pixels that differ from the background; None if no hue dominates."""
    distances = np.sqrt(((picture.astype(np.float64) - border_colour(picture)) ** 2).sum(axis=-1))
    subject = Image.fromarray(picture).convert("RGBA")
    subject.putalpha(Image.fromarray(np.where(distances > MIN_SUBJECT_DISTANCE, 255, 0).astype(np.uint8)))
    degrees = find_dominant_hue(subject)
    return None if degrees is None else nearest_hue(degrees)


def mean_distance(features: Tensor) -> Tensor:
    """Return the mean distance (1 - cosine) within each group: [groups, pictures, width] → [groups]."""
    normalised = torch.nn.functional.normalize(features, dim=-1)
    count = normalised.size(1)
    cosines = normalised @ normalised.transpose(1, 2)
    return 1 - (cosines.sum(dim=(1, 2)) - count) / (count * (count - 1))


def has_duplicates(pictures: np.ndarray) -> bool:
    """Tell whether any two of these pictures look the same."""
    small_pictures = shrink(pictures)
    distances = torch.cdist(small_pictures, small_pictures) / small_pictures.size(1) ** 0.5
    return bool((distances + torch.eye(len(small_pictures)) * 255 < MAX_DUPLICATE_DISTANCE).any())


def shrink(pictures: np.ndarray) -> Tensor:
    """Reduce each picture to one row of a few pixels, fp32, 0 … 255."""
    side = min(COMPARISON_SIDE, pictures.shape[1])
    rows = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    return torch.nn.functional.adaptive_avg_pool2d(rows, side).flatten(1)


def find_nearest_drawings(pictures: np.ndarray, drawings: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return each picture's distance to the nearest drawing (RMS, in steps of 255) and that drawing's index."""
    small_pictures = shrink(pictures)
    small_drawings = shrink(drawings)
    index = torch.cdist(small_pictures, small_drawings).argmin(dim=1)
    return (small_pictures - small_drawings[index]).square().mean(dim=1).sqrt(), index


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return the Fréchet distance of two sets of features [n, width], each taken as a normal distribution.

    |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), as Heusel et al. (2017) have it, in float64. Raises ValueError for a set of
    fewer than two.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError("A Fréchet distance needs two pictures on each side.")
    sets = [features.double().numpy() for features in (first, second)]
    shift = sets[0].mean(axis=0) - sets[1].mean(axis=0)
    covariances = [np.cov(features, rowvar=False) for features in sets]
    root = _symmetric_root(covariances[0])
    product_root = _symmetric_root(root @ covariances[1] @ root)  # has the trace of (Σ₁ Σ₂)^½, and is symmetric
    return max(0.0, float(shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * product_root)))


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    """Return the square root of a symmetric matrix without negative eigenvalues, by its eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def overshoot(upscaled: np.ndarray, low: int, high: int) -> float:
    """Return how far an upscaled step chart of `low` and `high` exceeds either, in steps of 255."""
    return float(max(int(upscaled.max()) - high, low - int(upscaled.min()), 0))
