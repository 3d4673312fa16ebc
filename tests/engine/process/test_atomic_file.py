"""A file is written completely or not at all, and a full disk leaves no partial file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from engine.calibration import calibration
from engine.calibration.calibration import Calibration
from engine.contract import ModelProfile
from engine.model_cache import catalog_file
from engine.model_cache.catalog_file import CalibratedModel
from engine.preview_maps.latent_map import LatentMap, MapStore
from engine.process.system import write_atomically

WARM = ModelProfile(
    name="a",
    revision="r",
    dtype="float32",
    size=64,
    multiple=8,
    max_pixels=4096,
    tokens=77,
    steps=4,
    sampler="ddim",
    samplers=("ddpm", "ddim", "euler", "dpmpp_2m"),
    guidance=4.0,
    row_ms=1.0,
    encode_ms=1.0,
    decode_ms=1.0,
)
CALIBRATION = Calibration("float32", 2, 4, "ddim", 1.0, 1.0, 1.0, {1: 1.0}, {"float32": 1.0})


def raise_disk_full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_write_replaces_the_file_or_leaves_it_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    monkeypatch.setattr(os, "fsync", raise_disk_full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"three")
    assert path.read_bytes() == b"two"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_full_disk_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", raise_disk_full)
    MapStore(tmp_path).save_map("r1", LatentMap(np.zeros((5, 3), np.float32), 1, 1))
    calibration.write_calibrations(tmp_path / "calibration.json", {"a": CALIBRATION})
    catalog_file.write_entries(tmp_path, {"a": CalibratedModel(WARM, CALIBRATION, 1)})
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == []


def test_the_catalogue_of_known_models_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_file, "MAX_ENTRIES", 3)
    for key in ("a", "b", "c", "a", "d"):
        catalog_file.write_entries(tmp_path, {key: CalibratedModel(WARM, CALIBRATION, 1)})
    assert list(catalog_file.read_catalog(tmp_path)) == ["c", "a", "d"], "the newest entries stay"
