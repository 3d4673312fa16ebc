"""The sheet of a run's pictures: reading order, blank cells, and no other file touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from training.pictures.masked_pictures import write_picture_sheet


def test_a_sheet_is_in_reading_order_and_leaves_other_files_alone(tmp_path: Path) -> None:
    other_file = tmp_path / "sheet.fresh"
    other_file.write_text("mine")
    pictures = [np.full((2, 2, 3), value, np.uint8) for value in (10, 20, 30)]
    write_picture_sheet(tmp_path / "sheet.png", pictures, columns=2, zoom=1)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert pixels[::2, ::2, 0].tolist() == [[10, 20], [30, 255]]
    assert other_file.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet.fresh", "sheet.png"]
