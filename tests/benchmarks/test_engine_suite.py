"""The benchmarks measure what they claim: equal loads, equal weights on both sides, rows without a measurement.

No test asserts a figure: a slow machine may miss a goal, and that must not break the build.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import simulated_day
from benchmarks.engine import evaluations, parity, resumption, step_overhead, suite, throughput, users_plot, workload
from benchmarks.engine.users_plot import UserMeasurement
from benchmarks.engine.workload import SAMPLER_MIX, Workload, time_engine
from benchmarks.report.figure_row import FigureRow
from engine.batching.engine import Engine
from engine.calibration.calibration import Calibration
from engine.contract import Recipe, count_row_steps
from engine.models.families.embedded import build_pipeline
from engine.models.families.stable_diffusion import StableDiffusion

SHORT_LOAD = Workload(4, "float32", users=2)
SMALL = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own


@pytest.fixture(scope="module")
def sequential_engine() -> Any:
    return build_pipeline()


def recipes(load: Workload, family: Any) -> list[Recipe]:
    return [job.task for job in load.make_jobs(family) if isinstance(job.task, Recipe)]


def test_a_mixed_load_has_as_many_row_steps_as_a_uniform_one(embedded: StableDiffusion) -> None:
    load = Workload(50, "float32")
    mixed_load = Workload(50, "float32", mixed=True)
    assert sum(map(count_row_steps, recipes(load, embedded))) == sum(
        map(count_row_steps, recipes(mixed_load, embedded))
    )
    kinds = recipes(mixed_load, embedded)
    assert len({each.sampler for each in kinds}) == 5
    assert len({each.steps for each in kinds}) >= 5
    assert {each.guidance == 1.0 for each in kinds} == {True, False}
    assert len(SAMPLER_MIX) == 8


def test_a_load_with_init_images_has_as_many_row_steps_as_one_without(embedded: StableDiffusion) -> None:
    load = Workload(50, "float32")
    with_images = Workload(50, "float32", with_init_image=True)
    assert sum(map(count_row_steps, recipes(load, embedded))) == sum(
        map(count_row_steps, recipes(with_images, embedded))
    )


@pytest.mark.slow
def test_the_preview_benchmark_waits_for_every_users_preview(embedded: StableDiffusion, sequential_engine: Any) -> None:
    load = Workload(10, "float32", users=3)
    our_rows = workload.time_engine_previews(embedded, load)
    sequential_rows = workload.time_pipeline_previews(sequential_engine, embedded, load)
    assert len(our_rows) == len(sequential_rows) == 3
    assert sequential_rows[-1] > sequential_rows[0] > 0  # a later user waits for whole jobs
    assert not sequential_engine._interrupt or sequential_engine("cat", num_inference_steps=1, output_type="latent")


def test_the_rows_of_a_cancelled_job_are_free_at_once(embedded: StableDiffusion) -> None:
    assert step_overhead.measure_cancel_delay(embedded, SHORT_LOAD).figure == 0


@pytest.mark.slow
def test_a_killed_and_resumed_picture_is_the_same(embedded: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumption, "KILL_COUNT", 2)
    exact_row, worst_row = resumption.measure_resume_rows(embedded, SHORT_LOAD)
    assert (exact_row.figure, exact_row.meets_goal) == (2, True)
    assert worst_row.figure is not None
    assert worst_row.figure > 60
    shape = embedded.latent_shape(64, 64)
    one = torch.zeros(shape)
    other = torch.ones(shape)
    assert (
        resumption.decoded_psnr(embedded, one, one)
        == resumption.EQUAL_PSNR
        > resumption.decoded_psnr(embedded, one, other)
    )


def test_gpu_rows_say_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = throughput.measure_gpu_rows()
    assert [row.name for row in rows] == [name for name, _ in throughput.ROW_GOALS]
    assert all(row.figure is None and not row.meets_goal and row.note == throughput.NO_GPU_NOTE for row in rows)


@pytest.mark.slow
def test_the_gpu_benchmarks_run_on_small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code, with small networks on the processor. It skips the compiler, which takes a minute."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = throughput.measure_model_rows(
        lambda: throughput.build_random_model("cpu", SMALL, {"block_out_channels": (32, 32)}),
        lambda: throughput.build_random_model("cpu", SMALL, {"block_out_channels": (32, 32)}),
        Workload(2, "float32", users=2),
    )
    assert [row.goal for row in rows] == [goal for _, goal in throughput.ROW_GOALS]
    assert rows[0].figure is not None
    assert rows[2].figure is not None
    assert (rows[1].figure, "compiler" in rows[1].note) == (None, True)


SHORT_SETTINGS = {
    suite: {"STEPS": 4, "PREVIEW_STEPS": 10, "QUICK_PREVIEW_STEPS": 10, "OVERHEAD_STEPS": 8},
    evaluations: {"STEPS": 12, "DRAFT_EVALUATIONS": 5, "KILLS": 1, "count_usual_evaluations": lambda sampler, steps: 8},
    parity: {"STEPS": 2, "PLAN_STEPS": 12},
    resumption: {"KILL_COUNT": 1},
    step_overhead: {"ROUNDS": 1},
    throughput: {"ROUNDS": 1, "DEFAULT_ROUNDS": 1, "NETWORK_ROUNDS": 1, "WARMUP_FORWARDS": 1},
}


@pytest.fixture
def short_sides(
    monkeypatch: pytest.MonkeyPatch, embedded: StableDiffusion, sequential_engine: Any
) -> suite.ComparedModels:
    """The same code with few steps and users, and without a compiler."""
    for module, names in SHORT_SETTINGS.items():
        for name, value in names.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(suite.ComparedModels, "load", property(lambda sides: Workload(suite.STEPS, "float32", users=2)))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    calibration = Calibration(
        dtype="float32", rows=32, steps=4, sampler="ddpm", row_ms=1.0, encode_ms=1.0, decode_ms=1.0,
        bucket_ms={1: 1.0, 2: 1.5, 4: 2.5, 8: 4.5, 16: 8.5, 32: 16.5}, dtype_ms={},
    )  # fmt: skip
    return suite.ComparedModels(embedded, sequential_engine, calibration)


def list_measured(rows: list[FigureRow]) -> list[str]:
    """The names of the rows that have a figure and all their samples."""
    return [row.name for row in rows if row.figure is not None and row.samples >= row.planned]


@pytest.mark.slow
def test_every_row_of_the_long_table_measures_something(
    short_sides: suite.ComparedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list(suite.measure_all_rows(short_sides))
    unmeasured_rows = {row.name: row.note for row in rows if row.name not in list_measured(rows)}
    assert [note for note in unmeasured_rows.values() if "compiler" not in note] == []
    assert len(unmeasured_rows) <= 1
    assert len({row.name for row in rows}) == len(rows)


@pytest.mark.slow
def test_every_row_of_the_short_table_measures_something(short_sides: suite.ComparedModels) -> None:
    rows = list(suite.measure_quick_rows(short_sides))
    assert list_measured(rows) == [row.name for row in rows]


def test_a_load_that_finishes_no_picture_gives_no_figure(
    embedded: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "run_engine", lambda family, load: iter(()))
    with pytest.raises(RuntimeError, match="there is no figure"):
        time_engine(embedded, SHORT_LOAD)


@pytest.mark.slow
def test_failed_jobs_give_no_figure(embedded: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_overhead, "ROUNDS", 1)
    monkeypatch.setattr(
        Engine, "_fail_non_finite", lambda engine, batch, x: [engine._fail_job(one.job, "no", "us") for one in batch]
    )
    with pytest.raises(RuntimeError, match="there is no figure"):
        step_overhead.measure_preview_overhead(embedded, SHORT_LOAD)
    with pytest.raises(RuntimeError, match="there is no figure"):
        step_overhead.measure_flood_slowdown(embedded, SHORT_LOAD, {1: 1.0, 2: 2.0})


def test_a_failing_step_ends_the_decode_workers_thread(
    embedded: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Engine) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Engine, "step", fail)
    threads = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="out of memory"):
        step_overhead.measure_preview_overhead(embedded, SHORT_LOAD)
    assert set(threading.enumerate()) <= threads


def test_missing_previews_give_no_figure(embedded: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "time_engine_previews", lambda family, load, step_share=0.1: [])
    row = suite.measure_first_preview(embedded, SHORT_LOAD)
    assert (row.figure, row.meets_goal, row.remark) == (None, False, "nothing was measured: 0 of 2")
    monkeypatch.setattr(workload, "time_engine_previews", lambda family, load, step_share=0.1: [0.1])
    assert not suite.measure_first_preview(embedded, SHORT_LOAD).meets_goal


def test_fairness_fails_if_users_got_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simpy")
    monkeypatch.setattr(simulated_day, "measure_cost_shares", lambda sizes: [1.0])  # of eight
    assert [row.meets_goal for row in simulated_day.measure_fairness()[-2:]] == [False, False]
    monkeypatch.setattr(simulated_day, "measure_cost_shares", lambda sizes: [])
    assert [row.figure for row in simulated_day.measure_fairness()[-2:]] == [None, None]


def test_the_plot_shows_both_sides(tmp_path: Path) -> None:
    measurements = [UserMeasurement(each, (1.0 + each, 0.1), (2.0, 0.1 * each)) for each in users_plot.USER_COUNTS]
    users_plot.plot_measurements(measurements, tmp_path / "plot.png", "told")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (2 * users_plot.PANEL_SIZE[0] + users_plot.PANEL_GAP, users_plot.PANEL_SIZE[1] + 44)
        colours = {colour for _, colour in image.convert("RGB").getcolors(10_000) or []}
    assert len(colours) > 4


@pytest.mark.parametrize(("top", "marks"), [(1.0, 6), (7.3, 4), (0.042, 5), (230.0, 5)])
def test_axes_have_a_few_round_numbers(top: float, marks: int) -> None:
    axis = users_plot._choose_ticks(top)
    assert (axis[0], len(axis)) == (0, marks)
    assert axis[-1] <= top
