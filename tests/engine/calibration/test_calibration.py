"""Calibration is stored atomically per device, build and model; a damaged file is replaced. No speed is asserted."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.calibration.calibration import (
    Calibration,
    calibrate,
    calibration_key,
    find_batch_limit,
    find_knee,
    find_row_ms,
    measure_calibration,
    update_default_steps,
)
from engine.calibration.measurement import BUCKETS_BUDGET_SECONDS, BUDGET_SECONDS, TIMED_BUCKETS, Clock
from engine.contract import ModelProfile, decode, encode
from engine.models.families.stable_diffusion import StableDiffusion
from engine.sampling import plan
from shared.engine_fixtures import SCHEDULE, Affine


@dataclass
class SimulatedSpeed:
    """Gives a family a simulated clock and speed. A forward takes time by its rows and pixels."""

    family: Any
    row_ms: float
    encode_ms: float = 1.0
    decode_ms: float = 1.0
    build_ms: Mapping[int, float] = field(default_factory=dict[int, float])  # by rows, added to a shape's first forward
    now: float = 0.0
    forwards: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # rows and side
    decode_sizes: list[int] = field(default_factory=list[int])

    def __post_init__(self) -> None:
        self.family.size = 512
        self.family.max_pixels = 1024 * 1024
        denoise = self.family.denoise
        finish = self.family.finish
        condition = self.family.encode_conditioning
        native_columns = self.family.latent_shape(self.family.size, self.family.size)[-1]

        def timed_denoise(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
            if (len(x), 8 * x.shape[-1]) not in self.forwards:
                self.now += self.build_ms.get(len(x), 0.0) / 1000
            self.forwards.append((len(x), 8 * x.shape[-1]))
            self.now += self.row_ms * len(x) * (x.shape[-1] / native_columns) ** 2 / 1000
            return denoise(x, *arguments)

        def timed_finish(latents: torch.Tensor) -> Any:
            self.decode_sizes.append(8 * latents.shape[-1])
            self.now += self.decode_ms * (latents.shape[-1] / native_columns) ** 2 / 1000
            return finish(latents)

        def timed_condition(*args: Any, **kwargs: Any) -> Any:
            self.now += self.encode_ms / 1000
            return condition(*args, **kwargs)

        self.family.denoise = timed_denoise
        self.family.finish = timed_finish
        self.family.encode_conditioning = timed_condition

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now, lambda: self.now * torch.get_num_threads())


def test_time_of_other_programs_is_not_counted(affine: Any) -> None:
    """A forward of 40 ms in which each of our threads ran for 1 ms counts as 1 ms."""
    wall = count(0.0, 0.04)
    cpu_clock = count(0.0, 0.001 * torch.get_num_threads())
    clock = Clock(lambda: next(wall), lambda: next(cpu_clock))
    assert clock.time_once(lambda: None, affine.device) == pytest.approx(1.0)


@pytest.mark.parametrize("row_ms", [1500.0, 3000.0, 20_000.0])
def test_a_slow_model_is_estimated_from_small_pictures(affine: Any, row_ms: float) -> None:
    slow_family = SimulatedSpeed(affine, row_ms, decode_ms=2 * row_ms)
    calibration = measure_calibration(affine, slow_family.clock)
    assert slow_family.now <= BUDGET_SECONDS + row_ms / 1000 / 16 + 0.01
    assert {side for _, side in slow_family.forwards} == {128}, "no forward of the native size"
    assert len(slow_family.forwards) <= 4
    assert calibration.bucket_ms == pytest.approx({1: row_ms, 2: 2 * row_ms})
    assert calibration.row_ms == pytest.approx(row_ms)
    assert calibration.decode_ms == pytest.approx(2 * row_ms)
    assert calibration.rows == 2, "guidance stays one forward"


def test_the_slowest_model_is_measured_with_one_forward(affine: Any) -> None:
    slow_family = SimulatedSpeed(affine, 1_000_000.0, encode_ms=5000.0, decode_ms=1.0)
    calibration = measure_calibration(affine, slow_family.clock)
    assert slow_family.forwards == [(1, 128)]
    assert slow_family.decode_sizes == [], "the first real decode measures it"
    assert calibration.encode_ms == pytest.approx(5000.0)


def test_only_the_number_format_of_the_files_is_timed(affine: Any) -> None:
    affine.dtypes = ("bfloat16",)
    slow_family = SimulatedSpeed(affine, 3000.0)
    calibration = measure_calibration(affine, slow_family.clock)
    assert (calibration.dtype, set(calibration.dtype_ms)) == ("bfloat16", {"bfloat16"})
    assert len(slow_family.forwards) == 2


@settings(deadline=None)
@given(row_ms=st.floats(0.01, 1e5), encode_ms=st.floats(0.01, 2000.0), decode_ms=st.floats(0.01, 1e5))
def test_the_budget_holds_at_any_speed(row_ms: float, encode_ms: float, decode_ms: float) -> None:
    """A measurement that runs is not cut short: at most a small forward, a small decode or the text encoding."""
    slow_family = SimulatedSpeed(Affine(SCHEDULE), row_ms, encode_ms, decode_ms)
    measure_calibration(slow_family.family, slow_family.clock)
    small = row_ms / 16 + decode_ms / 64 + 2 * encode_ms
    assert slow_family.now <= BUDGET_SECONDS + 2 * BUCKETS_BUDGET_SECONDS + small / 1000 + 1e-6
    assert (
        slow_family.now <= BUDGET_SECONDS + small / 1000 + 1e-6 or len({rows for rows, _ in slow_family.forwards}) > 1
    )


def test_a_fast_model_is_measured_at_its_native_size(affine: Any) -> None:
    slow_family = SimulatedSpeed(affine, 20.0, decode_ms=30.0)
    calibration = measure_calibration(affine, slow_family.clock)
    assert calibration.bucket_ms == pytest.approx({rows: 20.0 * rows for rows in calibration.bucket_ms})
    assert {rows for rows, side in slow_family.forwards if side == 512} >= {1, 2, 4, 8}
    assert 512 in slow_family.decode_sizes


@pytest.mark.parametrize("build_ms", [dict.fromkeys(TIMED_BUCKETS, 75.0), {8: 900.0, 16: 800.0}])
def test_the_time_to_build_kernels_is_not_part_of_a_forward(affine: Any, build_ms: dict[int, float]) -> None:
    cold_family = SimulatedSpeed(affine, 5.0, build_ms=build_ms)
    calibration = measure_calibration(affine, cold_family.clock)
    assert calibration.bucket_ms == pytest.approx({rows: 5.0 * rows for rows in calibration.bucket_ms})
    assert max(calibration.bucket_ms) >= 16


def test_calibration_is_measured_once_and_then_read(affine: Any, tmp_path: Path) -> None:
    path = tmp_path / "data" / "calibration.json"
    first = calibrate(affine, path)
    forwards = len(affine.shapes)
    assert forwards > 0
    assert calibrate(affine, path) == first
    assert len(affine.shapes) == forwards
    assert list(path.parent.iterdir()) == [path]  # no half-written file is left


def test_calibration_can_be_repeated(affine: Any, tmp_path: Path) -> None:
    calibrate(affine, tmp_path / "c.json")
    forwards = len(affine.shapes)
    calibrate(affine, tmp_path / "c.json", force=True)
    assert len(affine.shapes) > forwards


def test_another_revision_is_stored_beside_the_first(affine: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    calibrate(affine, path)
    first = calibration_key(affine)
    affine.revision = "r2"
    calibrate(affine, path)
    assert set(json.loads(path.read_text())) == {first, calibration_key(affine)}


@pytest.mark.parametrize(
    "corrupt_content",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"key": {}}', b'{"key": {"dtype": "int4"}}', b"[" * 100_000, b"null"],
    ids=["empty", "cut", "not text", "a list", "no fields", "unknown dtype", "deep", "null"],
)
def test_a_damaged_file_is_measured_anew_and_replaced(
    affine: Any, tmp_path: Path, corrupt_content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(corrupt_content)
    with caplog.at_level(logging.WARNING):
        calibration = calibrate(affine, path)
    assert "measuring anew" in caplog.text
    assert calibrate(affine, path) == calibration


def test_values_out_of_bounds_make_the_file_invalid(affine: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    calibration = calibrate(affine, path)
    path.write_text(path.read_text().replace(f'"rows": {calibration.rows}', '"rows": -3'))
    assert calibrate(affine, path).rows >= 1


def test_a_calibration_that_cannot_be_stored_is_still_measured(
    affine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert calibrate(affine, tmp_path / "file" / "c.json").rows in TIMED_BUCKETS
    assert "cannot be stored" in caplog.text


def test_the_batch_limit_is_the_knee_of_the_times() -> None:
    assert find_knee({1: 11.4, 2: 14.3, 8: 29.0, 16: 48.5, 32: 95.0}) == 16
    assert find_knee({1: 10.0, 2: 20.0, 4: 40.0}) == 1
    assert find_knee({1: 10.0, 2: 10.1, 4: 10.2, 8: 10.3}) == 8


def test_guidance_stays_one_forward_if_that_is_not_slower() -> None:
    assert find_batch_limit({1: 300.0, 2: 600.0}) == 2
    assert find_batch_limit({1: 10.0, 2: 20.0, 4: 40.0}) == 2
    assert find_batch_limit({1: 10.0, 2: 30.0, 4: 60.0}) == 1


def test_a_slow_model_gets_no_large_batches() -> None:
    assert find_batch_limit({1: 300.0, 2: 501.0, 4: 700.0}) == 2
    assert find_batch_limit({1: 300.0, 2: 500.0, 4: 700.0, 8: 2000.0}) == 4


def test_a_larger_batch_is_tried_if_the_largest_measured_one_paid_off() -> None:
    assert find_batch_limit({1: 100.0, 2: 110.0}) == 4
    assert find_batch_limit({1: 300.0, 2: 510.0}) == 2
    assert find_batch_limit({1: 10.0, 2: 10.1, 4: 10.2, 8: 10.3, 16: 10.4, 32: 10.5}) == 32


def test_default_steps_follow_only_a_large_change_of_speed(affine: Any) -> None:
    calibration = measure_calibration(affine, SimulatedSpeed(affine, 7.0).clock)
    assert (calibration.steps, calibration.sampler) == (1000, "ddpm")
    assert update_default_steps(replace(calibration, row_ms=8.5), affine) == replace(calibration, row_ms=8.5)
    assert update_default_steps(replace(calibration, row_ms=14.0), affine).steps == 500


@pytest.mark.slow
def test_the_embedded_models_calibration_is_consistent(embedded: StableDiffusion) -> None:
    calibration = measure_calibration(embedded)
    assert set(calibration.dtype_ms) == {"float32", "bfloat16"}
    assert calibration.dtype == min(calibration.dtype_ms, key=lambda each: calibration.dtype_ms[each])
    assert calibration.row_ms == pytest.approx(find_row_ms(calibration.bucket_ms))
    assert calibration.rows in TIMED_BUCKETS
    assert list(calibration.bucket_ms.values()) == sorted(calibration.bucket_ms.values())
    assert plan(embedded.scheduler_config, calibration.sampler, calibration.steps).steps == calibration.steps
    profile = calibration.to_model_profile(embedded)
    assert decode(encode(profile), ModelProfile) == profile
    assert (profile.name, profile.size, profile.multiple, profile.tokens) == ("embedded", 64, 16, 24)


def test_a_models_usual_steps_are_its_default(affine: Any) -> None:
    affine.default_sampling = (8, "lcm")
    assert (measure_calibration(affine).steps, measure_calibration(affine).sampler) == (8, "lcm")


def test_default_steps_stay_within_the_schedule(affine: Any) -> None:
    affine.scheduler_config = {**affine.scheduler_config, "timestep_spacing": "leading"}
    calibration: Calibration = measure_calibration(affine)  # fast enough for a thousand; but this spacing has 999
    assert (calibration.steps, calibration.sampler) == (999, "ddpm")
