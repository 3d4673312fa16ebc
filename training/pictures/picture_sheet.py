"""Writes many pictures of a run as one PNG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_picture_sheet(path: Path, pictures: Sequence[np.ndarray], *, columns: int = 8, zoom: int = 2) -> None:
    """Write one PNG of all pictures in reading order, at most `columns` in a line, replaced atomically."""
    columns = min(columns, len(pictures))
    blank = np.full_like(pictures[0], 255)
    cells = [*pictures, *[blank] * (-len(pictures) % columns)]
    lines = [np.concatenate(cells[start : start + columns], axis=1) for start in range(0, len(cells), columns)]
    sheet = Image.fromarray(np.concatenate(lines))
    temp_path = path.with_name(f"{path.name}.fresh")
    sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save(temp_path, "PNG")
    os.replace(temp_path, path)
