"""Calibration: stored whole, bound to device, build and model; a spoilt file is measured anew. No speed is asserted."""

from __future__ import annotations

import json
import logging
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import calibration
from engine.calibration import BUDGET, Calibration, calibrate, identity, knee, measure
from engine.engine import BUCKETS
from engine.families.stable_diffusion import StableDiffusion
from engine.job import Warm, decode, encode
from engine.plan import plan


def test_what_other_programs_take_is_not_counted(affine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward of 4 s in which our threads ran for a quarter of a second each is one of 250 ms."""
    wall, ran = count(0.0, 4.0), count(0.0, 0.25 * torch.get_num_threads())
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(calibration.time, "process_time", lambda: next(ran))
    found = measure(affine)
    assert set(found.dtype_ms.values()) == {250.0}
    assert set(found.bucket_ms.values()) == {250.0}


def test_it_is_measured_once_and_then_read(affine: Any, tmp_path: Path) -> None:
    path = tmp_path / "data" / "calibration.json"
    first = calibrate(affine, path)
    forwards = len(affine.shapes)
    assert forwards > 0
    assert calibrate(affine, path) == first
    assert len(affine.shapes) == forwards
    assert list(path.parent.iterdir()) == [path]  # nothing half-written is left


def test_it_can_be_measured_again(affine: Any, tmp_path: Path) -> None:
    calibrate(affine, tmp_path / "c.json")
    forwards = len(affine.shapes)
    calibrate(affine, tmp_path / "c.json", again=True)
    assert len(affine.shapes) > forwards


def test_another_revision_is_measured_beside_the_first(affine: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    calibrate(affine, path)
    first = identity(affine)
    affine.revision = "r2"
    calibrate(affine, path)
    assert set(json.loads(path.read_text())) == {first, identity(affine)}


@pytest.mark.parametrize(
    "spoilt",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"key": {}}', b'{"key": {"dtype": "int4"}}', b"[" * 100_000, b"null"],
    ids=["empty", "cut", "not text", "a list", "no fields", "unknown dtype", "deep", "null"],
)
def test_a_spoilt_file_is_measured_anew_and_mended(
    affine: Any, tmp_path: Path, spoilt: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(spoilt)
    with caplog.at_level(logging.WARNING):
        found = calibrate(affine, path)
    assert "measuring anew" in caplog.text
    assert calibrate(affine, path) == found


def test_values_out_of_bounds_spoil_the_file(affine: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    found = calibrate(affine, path)
    path.write_text(path.read_text().replace(f'"rows": {found.rows}', '"rows": -3'))
    assert calibrate(affine, path).rows >= 1


def test_where_it_cannot_be_stored_it_is_still_measured(
    affine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert calibrate(affine, tmp_path / "file" / "c.json").rows in BUCKETS
    assert "cannot be stored" in caplog.text


def test_the_cap_is_the_knee() -> None:
    assert knee({1: 11.4, 2: 14.3, 8: 29.0, 16: 48.5, 32: 95.0}) == 16
    assert knee({1: 10.0, 2: 20.0, 4: 40.0}) == 1
    assert knee({1: 10.0, 2: 10.1, 4: 10.2, 8: 10.3}) == 8


def test_the_embedded_model(embedded: StableDiffusion) -> None:
    found = measure(embedded)
    assert set(found.dtype_ms) == {"float32", "bfloat16"}
    assert found.dtype == min(found.dtype_ms, key=lambda each: found.dtype_ms[each])
    assert found.row_ms == pytest.approx(found.bucket_ms[found.rows] / found.rows)
    assert list(found.bucket_ms.values()) == sorted(found.bucket_ms.values())
    assert plan(embedded.scheduler_config, found.sampler, found.steps).steps == found.steps
    assert BUDGET <= 2
    warm = found.warm(embedded)
    assert decode(encode(warm), Warm) == warm
    assert (warm.name, warm.size, warm.multiple, warm.tokens) == ("embedded", 64, 16, 24)


def test_a_model_with_steps_of_its_own_has_them_as_default(affine: Any) -> None:
    affine.usual = (8, "lcm")
    assert (measure(affine).steps, measure(affine).sampler) == (8, "lcm")


def test_default_steps_are_what_the_schedule_allows(affine: Any) -> None:
    affine.scheduler_config = {**affine.scheduler_config, "timestep_spacing": "leading"}
    found: Calibration = measure(affine)  # fast enough for a thousand; but this spacing has 999
    assert (found.steps, found.sampler) == (999, "ddpm")
