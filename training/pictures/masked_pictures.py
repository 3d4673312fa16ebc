"""Training pictures for pixel networks: uint8 arrays in memory, each with the mask of its subject.

It is independent of captions, latents and networks. A drawing with all its variants is either for training or held out
(`is_held_out`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.models.judge import as_images
from training.pictures.artwork import Artwork, split_drawings
from training.pictures.variants import FIRST_VALIDATION_NUMBER, number_variants, render_variant

SUBJECT_THRESHOLD = 12  # of 255: a pixel that differs more from the background belongs to the subject

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class MaskedPictures:
    """Pictures and masks: `pictures` uint8 [n, side, side, 3]; `subject_masks` bool [n, side, side]."""

    pictures: np.ndarray
    subject_masks: np.ndarray

    def __len__(self) -> int:
        return len(self.pictures)

    def read_rows(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return these pictures, fp32 [n, 3, side, side] from −1 to 1, and their masks [n, 1, side, side] of 0 or 1."""
        return as_images(self.pictures[index]), torch.from_numpy(self.subject_masks[index]).float().unsqueeze(1)


def as_pictures(images: Tensor) -> np.ndarray:
    """Convert [n, 3, h, w] from −1 to 1 to uint8 [n, h, w, 3]; other values are clamped."""
    return images.float().add(1).mul(127.5).clamp(0, 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def find_subject(picture: np.ndarray) -> np.ndarray:
    """Return where a picture uint8 [h, w, 3] differs from its border's most frequent colour.

    If it differs nowhere, the subject is everywhere.
    """
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    colours, counts = np.unique(border, axis=0, return_counts=True)
    background = colours[counts.argmax()].astype(np.int16)
    mask = np.abs(picture.astype(np.int16) - background).max(axis=-1) > SUBJECT_THRESHOLD
    return mask if mask.any() else np.ones_like(mask)


def mask_pictures(pictures: Sequence[np.ndarray]) -> MaskedPictures:
    """Stack pictures of one size and find their masks. Raises ValueError if there are none."""
    if not pictures:
        raise ValueError("there is no picture to learn from")
    return MaskedPictures(np.stack(pictures), np.stack([find_subject(picture) for picture in pictures]))


def render_artwork(
    pictures: Sequence[Artwork],
    seed: int,
    per_picture: int = 4,
    on_progress: ProgressCallback = lambda finished, total: None,
) -> tuple[MaskedPictures, MaskedPictures]:
    """Render variants to train on, `per_picture` of every drawing, and one variant of every held-out drawing."""
    train_drawings, held_out_drawings = split_drawings(pictures)
    pairs = number_variants(train_drawings, per_picture)
    train_pictures = list[np.ndarray]()
    for index, number in pairs:
        train_pictures.append(render_variant(train_drawings[index], number, seed).pixels)
        on_progress(len(train_pictures), len(pairs))
    held_out = [render_variant(drawing, FIRST_VALIDATION_NUMBER, seed).pixels for drawing in held_out_drawings]
    return mask_pictures(train_pictures), mask_pictures(held_out)


def write_picture_sheet(path: Path, pictures: Sequence[np.ndarray], *, columns: int = 8, zoom: int = 2) -> None:
    """Write one PNG of all pictures in reading order, at most `columns` in a line, replaced atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = min(columns, len(pictures))
    blank = np.full_like(pictures[0], 255)
    cells = [*pictures, *[blank] * (-len(pictures) % columns)]
    lines = [np.concatenate(cells[start : start + columns], axis=1) for start in range(0, len(cells), columns)]
    sheet = Image.fromarray(np.concatenate(lines))
    temp_path = path.with_name(f"{path.name}.fresh")
    sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save(temp_path, "PNG")
    os.replace(temp_path, path)
