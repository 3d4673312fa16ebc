"""The measures, each a pure function of pictures or of what the judge said of them. Knows no model and no files.

Pictures are uint8 [n, h, w, 3], or one of them; shares are percent.
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

UNLIKE = 40.0  # how far a pixel is from the background, in steps of 255, to belong to the subject
SAME = 3.0  # two pictures closer than this, in steps of 255, are the same to the eye
SMALL = 32  # the side at which pictures are laid over each other: finer than that, a decoder has its say


def retrieval(scores: Tensor, wanted: Tensor, count: int) -> float:
    """Percent of rows of `scores` [n, labels] whose wanted label [n] is among the best `count`."""
    return among(scores, [(int(one),) for one in wanted], count)


def among(scores: Tensor, wanted: Sequence[Sequence[int]], count: int) -> float:
    """The same where any of several labels will do."""
    best = scores.topk(min(count, scores.size(1)), dim=1).indices.tolist()
    return share([not set(some).isdisjoint(row) for some, row in zip(wanted, best, strict=True)])


def share(hits: Sequence[bool]) -> float:
    """Percent; NaN of none."""
    return 100 * sum(hits) / len(hits) if hits else math.nan


def masked_psnr(real: np.ndarray, made: np.ndarray, masks: np.ndarray) -> Tensor:
    """dB of the pixels inside each picture's mask (bool [n, h, w]), at most 100; of pictures whose mask is not empty.

    Raises ValueError where all of them are.
    """
    inside = masks.any(axis=(1, 2))
    if not inside.any():
        raise ValueError("No picture has a pixel inside its mask.")
    masked = torch.from_numpy(masks[inside])[:, None].float()
    return psnr(as_images(made[inside]), as_images(real[inside]), masked)


def border(picture: np.ndarray) -> np.ndarray:
    """The median colour of the outermost two pixels all around: of the background, whatever reaches the edge."""
    ring = np.ones(picture.shape[:2], dtype=bool)
    ring[2:-2, 2:-2] = False
    return np.median(picture[ring].astype(np.float64), axis=0)


def background_of(picture: np.ndarray) -> str:
    """The named background that is nearest to the border's colour."""
    seen = border(picture)
    return min(BACKGROUNDS, key=lambda name: float(((seen - BACKGROUNDS[name]) ** 2).sum()))


def subject_hue(picture: np.ndarray) -> str | None:
    """The named hue of the pixels that are unlike the background; None where no hue leads."""
    away = np.sqrt(((picture.astype(np.float64) - border(picture)) ** 2).sum(axis=-1))
    seen = Image.fromarray(picture).convert("RGBA")
    seen.putalpha(Image.fromarray(np.where(away > UNLIKE, 255, 0).astype(np.uint8)))
    degrees = dominant_hue(seen)
    return None if degrees is None else hue_name(degrees)


def spread(features: Tensor) -> Tensor:
    """Mean distance (1 - cosine) between the pictures of each group: [groups, pictures, width] → [groups]."""
    unit = torch.nn.functional.normalize(features, dim=-1)
    count = unit.size(1)
    cosines = unit @ unit.transpose(1, 2)
    return 1 - (cosines.sum(dim=(1, 2)) - count) / (count * (count - 1))


def alike(pictures: np.ndarray) -> bool:
    """Whether any two of these pictures are the same to the eye."""
    seen = small(pictures)
    apart = torch.cdist(seen, seen) / seen.size(1) ** 0.5
    return bool((apart + torch.eye(len(seen)) * 255 < SAME).any())


def small(pictures: np.ndarray) -> Tensor:
    """Each picture as one row of a few pixels, fp32, 0 … 255."""
    side = min(SMALL, pictures.shape[1])
    rows = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    return torch.nn.functional.adaptive_avg_pool2d(rows, side).flatten(1)


def nearest(pictures: np.ndarray, drawings: np.ndarray) -> tuple[Tensor, Tensor]:
    """For each picture the distance to the nearest drawing (root mean square, steps of 255), and which that is."""
    seen, known = small(pictures), small(drawings)
    index = torch.cdist(seen, known).argmin(dim=1)
    return (seen - known[index]).square().mean(dim=1).sqrt(), index


def overshoot(enlarged: np.ndarray, low: int, high: int) -> float:
    """How far an enlarged step chart of `low` and `high` goes beyond either, in steps of 255."""
    return float(max(int(enlarged.max()) - high, low - int(enlarged.min()), 0))
