"""A file is written completely or not at all, and a full disk leaves no partial file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from engine import calibration
from engine.calibration import Calibration
from engine.job import Warm
from engine.latent_map import LatentMap
from engine.map_files import MapFiles
from engine.shelf import offered
from engine.shelf.offered import Offered
from engine.whole_file import write_whole

WARM = Warm(
    name="a", revision="r", dtype="float32", size=64, multiple=8, max_pixels=4096, tokens=77, steps=4, sampler="ddim",
    guidance=4.0, row_ms=1.0, encode_ms=1.0, decode_ms=1.0,
)  # fmt: skip
CALIBRATION = Calibration("float32", 2, 4, "ddim", 1.0, 1.0, 1.0, {1: 1.0}, {"float32": 1.0})


def raise_disk_full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_write_replaces_the_file_or_leaves_it_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    write_whole(path, b"one")
    write_whole(path, b"two")
    monkeypatch.setattr(os, "fsync", raise_disk_full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"three")
    assert path.read_bytes() == b"two"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_full_disk_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", raise_disk_full)
    MapFiles(tmp_path).write("r1", LatentMap(np.zeros((5, 3), np.float32), 1, 1))
    calibration.write(tmp_path / "calibration.json", {"a": CALIBRATION})
    offered.keep(tmp_path, {"a": Offered(WARM, CALIBRATION, 1)})
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == []


def test_the_catalogue_of_known_models_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offered, "MOST_KEPT", 3)
    for key in ("a", "b", "c", "a", "d"):
        offered.keep(tmp_path, {key: Offered(WARM, CALIBRATION, 1)})
    assert list(offered.read(tmp_path)) == ["c", "a", "d"], "the newest entries stay"
