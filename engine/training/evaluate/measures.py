"""The measures of the evaluation: pure functions of pictures or of the judge's output. Knows no model and no files.

Pictures are uint8 [n, h, w, 3], or one of them; shares are in percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.training.gan.losses import psnr
from engine.training.pictures.pixels import as_images
from engine.training.pictures.variants import BACKGROUNDS, dominant_hue, hue_name

UNLIKE = 40.0  # minimum distance of a subject's pixel from the background, in steps of 255
SAME = 3.0  # two pictures closer than this, in steps of 255, look the same
SMALL = 32  # the side at which pictures are compared; finer differences come from the decoder


def retrieval(scores: Tensor, wanted: Tensor, count: int) -> float:
    """Return the percentage of rows of `scores` [n, labels] whose wanted label [n] is among the best `count`."""
    return among(scores, [(int(one),) for one in wanted], count)


def among(scores: Tensor, wanted: Sequence[Sequence[int]], count: int) -> float:
    """Return the same if any of several labels counts as a hit."""
    best = scores.topk(min(count, scores.size(1)), dim=1).indices.tolist()
    return share([not set(some).isdisjoint(row) for some, row in zip(wanted, best, strict=True)])


def share(hits: Sequence[bool]) -> float:
    """Return the hits in percent; NaN if there are none to count."""
    return 100 * sum(hits) / len(hits) if hits else math.nan


def masked_psnr(real: np.ndarray, made: np.ndarray, masks: np.ndarray) -> Tensor:
    """Return the PSNR in dB inside each mask (bool [n, h, w]), at most 100, for pictures whose mask is not empty.

    Raises ValueError if all masks are empty.
    """
    inside = masks.any(axis=(1, 2))
    if not inside.any():
        raise ValueError("No picture has a pixel inside its mask.")
    masked = torch.from_numpy(masks[inside])[:, None].float()
    return psnr(as_images(made[inside]), as_images(real[inside]), masked)


def border(picture: np.ndarray) -> np.ndarray:
    """Return the median colour of the outermost two pixels: the background, even if the subject reaches the edge."""
    ring = np.ones(picture.shape[:2], dtype=bool)
    ring[2:-2, 2:-2] = False
    return np.median(picture[ring].astype(np.float64), axis=0)


def background_of(picture: np.ndarray) -> str:
    """Return the name of the background that is nearest to the border's colour."""
    seen = border(picture)
    return min(BACKGROUNDS, key=lambda name: float(((seen - BACKGROUNDS[name]) ** 2).sum()))


def subject_hue(picture: np.ndarray) -> str | None:
    """Return the named hue of the pixels that differ from the background; None if no hue dominates."""
    away = np.sqrt(((picture.astype(np.float64) - border(picture)) ** 2).sum(axis=-1))
    seen = Image.fromarray(picture).convert("RGBA")
    seen.putalpha(Image.fromarray(np.where(away > UNLIKE, 255, 0).astype(np.uint8)))
    degrees = dominant_hue(seen)
    return None if degrees is None else hue_name(degrees)


def spread(features: Tensor) -> Tensor:
    """Return the mean distance (1 - cosine) within each group: [groups, pictures, width] → [groups]."""
    unit = torch.nn.functional.normalize(features, dim=-1)
    count = unit.size(1)
    cosines = unit @ unit.transpose(1, 2)
    return 1 - (cosines.sum(dim=(1, 2)) - count) / (count * (count - 1))


def alike(pictures: np.ndarray) -> bool:
    """Tell whether any two of these pictures look the same."""
    seen = small(pictures)
    apart = torch.cdist(seen, seen) / seen.size(1) ** 0.5
    return bool((apart + torch.eye(len(seen)) * 255 < SAME).any())


def small(pictures: np.ndarray) -> Tensor:
    """Reduce each picture to one row of a few pixels, fp32, 0 … 255."""
    side = min(SMALL, pictures.shape[1])
    rows = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    return torch.nn.functional.adaptive_avg_pool2d(rows, side).flatten(1)


def nearest(pictures: np.ndarray, drawings: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return each picture's distance to the nearest drawing (RMS, in steps of 255) and that drawing's index."""
    seen, known = small(pictures), small(drawings)
    index = torch.cdist(seen, known).argmin(dim=1)
    return (seen - known[index]).square().mean(dim=1).sqrt(), index


def overshoot(enlarged: np.ndarray, low: int, high: int) -> float:
    """Return how far an enlarged step chart of `low` and `high` exceeds either, in steps of 255."""
    return float(max(int(enlarged.max()) - high, low - int(enlarged.min()), 0))
