"""The engine rows of `darkroom bench`: each goal is measured beside diffusers in the same run.

`quick` measures the README's first claims in a few minutes; all rows take about twenty.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.engine import step_overhead, throughput, workload
from benchmarks.engine.evaluations import measure_brief_rows
from benchmarks.engine.parity import measure_parity_rows
from benchmarks.engine.resumption import measure_resume_rows
from benchmarks.engine.throughput import measure_forward_rows
from benchmarks.engine.workload import USERS, Workload, cast_pipeline
from benchmarks.models.processes import darkroom_command, get_json, read_memory_mb, run_and_collect, run_server
from benchmarks.report.figure_row import FigureRow, print_progress
from engine.calibration.calibration import Calibration, calibrate
from engine.models.families.embedded import build_pipeline, load_embedded
from engine.models.family import Family

STEPS = 50  # throughput: enough for steps to dominate the time, few enough for three rounds
OVERHEAD_STEPS = 200  # for the time of a step outside the network
# previews: our advantage grows with the jobs' length
PREVIEW_STEPS = 1000
QUICK_PREVIEW_STEPS = 200


@dataclass(frozen=True)
class ComparedModels:
    """The embedded model twice: our calibrated family, and the diffusers pipeline in float32, its default."""

    family: Family
    pipeline: Any
    calibration: Calibration

    @property
    def load(self) -> Workload:
        """Return the load with the number format and batch limit that a worker would use here."""
        return Workload(STEPS, self.calibration.dtype, batch_limit=self.calibration.rows)


def load_models(data_folder: Path) -> ComparedModels:
    family = load_embedded()
    return ComparedModels(family, build_pipeline(), calibrate(family, data_folder / "calibration.json"))


def measure_quick_rows(models: ComparedModels) -> Iterator[FigureRow]:
    """Yield the rows of the README's first claims."""
    family = models.family
    pipeline = models.pipeline
    load = models.load
    yield from _measure_default_rows(models)
    print_progress("time to the preview at a tenth")
    yield compare_preview_times(pipeline, family, replace(load, steps=QUICK_PREVIEW_STEPS), "≥ 15")
    print_progress(f"throughput against diffusers in {load.dtype}, and the network alone")
    yield throughput.compare_equal_dtype(pipeline, family, load, "≥ 0.95")


def measure_all_rows(models: ComparedModels) -> Iterator[FigureRow]:
    """Yield every row for the embedded model, ordered so that the diffusers pipeline is cast only once."""
    family = models.family
    pipeline = models.pipeline
    load = models.load
    yield from _measure_default_rows(models)
    print_progress(f"time to the preview at a tenth of {PREVIEW_STEPS} steps: diffusers takes minutes")
    yield compare_preview_times(pipeline, family, replace(load, steps=PREVIEW_STEPS), "≥ 25")
    yield measure_first_preview(family, replace(load, steps=PREVIEW_STEPS))
    print_progress(f"throughput against diffusers in {load.dtype}, and the network alone")
    yield throughput.compare_equal_dtype(pipeline, family, load, "≥ 0.95")
    yield throughput.compare_four_pictures(pipeline, family, load)
    print_progress("guidance interval, mixed load, init images")
    yield throughput.compare_guidance_interval(family, load)
    yield throughput.compare_mixed_load(family, load)
    yield throughput.compare_init_images(family, load)
    print_progress("time of a step outside the network")
    yield from measure_forward_rows(family, load.dtype)
    yield step_overhead.measure_step_overhead(family, replace(load, steps=OVERHEAD_STEPS))
    yield step_overhead.measure_preview_overhead(family, load)
    yield step_overhead.measure_cancel_delay(family, load)
    yield step_overhead.measure_flood_slowdown(family, replace(load, count=4), models.calibration.bucket_ms)
    yield step_overhead.measure_flood_slowdown(family, load, models.calibration.bucket_ms)
    print_progress("killed and resumed")
    yield from measure_resume_rows(family, load)
    print_progress("few evaluations of many steps")
    yield from measure_brief_rows(family, load.dtype, load.batch_limit)
    print_progress("against diffusers compiled")
    yield throughput.compare_compiled(cast_pipeline(pipeline, load.dtype), family, load)


def _measure_default_rows(models: ComparedModels) -> Iterator[FigureRow]:
    """Yield the rows that need the diffusers pipeline in float32, its default."""
    load = models.load
    print_progress(f"embedded model, {USERS} users, ours in {load.dtype}, at most {load.batch_limit} rows a forward")
    yield from measure_parity_rows(models.pipeline, models.family)
    print_progress("throughput against diffusers as it runs by default")
    yield throughput.compare_default(models.pipeline, models.family, models.load, "≥ 4")


def compare_preview_times(pipeline: Any, family: Family, load: Workload, goal: str) -> FigureRow:
    """Compare the p95 time at which users see the preview at a tenth of the steps: diffusers' by ours."""
    diffusers_times = workload.time_pipeline_previews(pipeline, family, load)
    engine_times = workload.time_engine_previews(family, load)
    diffusers_p95, engine_p95 = workload.percentile_95(diffusers_times), workload.percentile_95(engine_times)
    name = f"p95 time to the 10 % preview of {load.steps} steps, sooner than diffusers by default"
    note = f"{engine_p95:.2f} s instead of {diffusers_p95:.1f}"
    samples = min(len(diffusers_times), len(engine_times))
    return FigureRow(name, diffusers_p95 / engine_p95, goal, "×", note, samples, load.users)


def measure_first_preview(family: Family, load: Workload) -> FigureRow:
    times = workload.time_engine_previews(family, load, step_share=0.0)
    name = f"p95 time to any preview, {load.users} users"
    return FigureRow(name, workload.percentile_95(times), "≤ 0.5", "s", samples=len(times), planned=load.users)


TIMEOUT_SECONDS = 90.0  # seconds after which a start counts as failed
BUSY_LOOP_COMMAND = (sys.executable, "-c", "while True: pass")
PROMPT = "terrier, looking up, cute, white background"


def measure_service_rows() -> list[FigureRow]:
    """Measure a `darkroom up` in a temporary data folder, then draw twice without it."""
    with tempfile.TemporaryDirectory() as folder:
        data_folder = Path(folder) / "data"
        with run_server(data_folder, Path(folder) / "up.log") as server:
            _wait_for(lambda: bool(get_json(f"{server.address}/healthz")))
            healthy_seconds = time.perf_counter() - server.started_at
            _wait_for(lambda: get_json(f"{server.address}/healthz").get("workers", 0) > 0)
            resident_mb = read_memory_mb(server.pid, "VmRSS")  # before the first job: idle
            has_torch = int(b"libtorch" in Path(f"/proc/{server.pid}/maps").read_bytes())
            job = server.draw_picture({"prompt": PROMPT, "seed": 7}, server.open_session())
        if job.first_frame_at is None:
            raise RuntimeError("the job ended without a frame")
        rows = [
            FigureRow("up answers /healthz after", healthy_seconds, "≤ 10", "s"),
            FigureRow("first frame after a job was posted", job.first_frame_at - job.posted_at, "≤ 2", "s"),
            FigureRow("idle bot process, resident", resident_mb, "≤ 200", "MB"),
            FigureRow("torch in the bot process", has_torch, "= 0", "mapped"),
        ]
        is_same, picture_count = _compare_under_load(data_folder)
        name = "the same seed gives the same bytes, also under load"
        return [*rows, FigureRow(name, is_same, "= 1", "yes", samples=picture_count)]


def _compare_under_load(data_folder: Path) -> tuple[int, int]:
    """Draw one seed twice, the second time beside processes that use every core.

    Returns 1 if both runs wrote the same files, else 0, and the number of files.
    """
    idle_hashes = _draw_and_hash(data_folder)
    busy_processes = [subprocess.Popen(BUSY_LOOP_COMMAND) for _ in range(os.cpu_count() or 1)]
    try:
        return int(_draw_and_hash(data_folder) == idle_hashes), len(idle_hashes)
    finally:
        for busy_process in busy_processes:
            busy_process.kill()
            busy_process.wait()


def _draw_and_hash(data_folder: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        options = ("--steps", "60", "--seed", "7", "--out", folder, "--json", "--data", str(data_folder))
        [line] = run_and_collect(darkroom_command("imagine", PROMPT, *options), Path(folder) / "log")
        return [hashlib.sha256(Path(picture).read_bytes()).hexdigest() for picture in line.values["pictures"]]


def _wait_for(is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not is_ready():
        if time.monotonic() > deadline:
            raise RuntimeError("darkroom up did not get ready in time")
        time.sleep(0.05)
