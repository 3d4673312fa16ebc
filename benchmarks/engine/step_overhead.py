"""Rows for the time outside the network: our arithmetic, previews and snapshots; and how fast rows become free."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import msgspec
import torch

from benchmarks.engine.workload import Workload
from benchmarks.report.figure_row import FigureRow
from engine.batching.engine import Engine, LatentsDone, StepDone
from engine.contract import Dtype, Frame, Job, Lora
from engine.device.core_turns import WorkKind
from engine.models.family import Conditioning, Family
from engine.output.decode_worker import DecodeWorker
from engine.output.previewer import fit_preview_map
from engine.preview_maps.latent_map import MapStore

ROUNDS = 3
SNAPSHOT_SECONDS = 2.0  # seconds between two snapshots, as in `engine.worker.run_control`
PREVIEW_SECONDS = 0.5  # seconds between two frames of an image: more often than Discord's budget allows


class TimedFamily:
    """Wraps a family and times its forwards."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self.forward_seconds = 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self._family, name)

    def denoise(
        self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, dtype: Dtype, loras: tuple[Lora, ...] = ()
    ) -> torch.Tensor:
        started_at = time.perf_counter()
        output = self._family.denoise(x, t, conditioning, dtype, loras)
        if self._family.device.type == "cuda":
            torch.cuda.synchronize(self._family.device)
        self.forward_seconds += time.perf_counter() - started_at
        return output


def measure_step_overhead(family: Family, load: Workload) -> FigureRow:
    """Measure the milliseconds of a step outside the network, with eight jobs and no watchers."""
    timed_family = TimedFamily(family)
    jobs = load.make_jobs(family)
    engine = Engine({family.name: timed_family}, rows=load.batch_limit)  # pyright: ignore[reportArgumentType] # it delegates to the family
    _add_jobs(engine, jobs)
    step_count = load.steps - 1
    warmup_steps = 4
    for _ in range(warmup_steps):
        engine.step()
    timed_family.forward_seconds = 0.0
    started_at = time.perf_counter()
    for _ in range(step_count - warmup_steps):
        engine.step()
    total_seconds = time.perf_counter() - started_at
    steps = step_count - warmup_steps
    step_ms = 1000 * total_seconds / steps
    overhead_ms = 1000 * (total_seconds - timed_family.forward_seconds) / steps
    name = "time outside the network a step, 8 jobs"
    if step_ms >= 20:
        return FigureRow(name, 100 * overhead_ms / step_ms, "≤ 2", "%", f"{overhead_ms:.2f} ms of {step_ms:.1f}")
    return FigureRow(name, overhead_ms, "≤ 0.4", "ms", f"of {step_ms:.1f} ms")


def measure_preview_overhead(family: Family, load: Workload) -> FigureRow:
    """Measure the slowdown when every image is previewed twice a second and snapshots are taken."""
    ratios = list[float]()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        map_store = MapStore(Path(folder))
        map_store.save_map(family.revision, fit_preview_map(family))  # the engine does this once, when idle
        for _ in range(ROUNDS):
            unwatched_seconds = _time_steps(family, load, map_store, is_watched=False)
            ratios.append(_time_steps(family, load, map_store, is_watched=True) / unwatched_seconds)
    added_percent = 100 * (median(ratios) - 1)
    note = f"8 images, a frame of each every {PREVIEW_SECONDS:g} s, snapshots every {SNAPSHOT_SECONDS:g} s, the ladder"
    name = "previews, snapshots and ladder: share of the step time, 50 steps"
    return FigureRow(name, added_percent, "≤ 5", "%", note)


def _time_steps(family: Family, load: Workload, map_store: MapStore, is_watched: bool) -> float:
    """Return the seconds of all steps and ladders, without the decoding of finished pictures."""
    engine = Engine({family.name: family}, rows=load.batch_limit)
    jobs = replace(load, ladder=is_watched).make_jobs(family)
    with closing(DecodeWorker({family.name: family}, map_store=map_store)) as decode_worker:
        _add_jobs(engine, jobs)
        for job in jobs:
            engine.watch(job.id, is_watched)
        seconds, frames, finished_count = _run_steps(engine, decode_worker, jobs, is_watched)
    _check_finished(finished_count, load.users * load.count)
    if is_watched and not [frame.result() for frame in frames if not frame.cancelled()]:
        raise RuntimeError("no preview was shown: there is no figure")
    return seconds


def _run_steps(
    engine: Engine, decode_worker: DecodeWorker, jobs: Sequence[Job], is_watched: bool
) -> tuple[float, list[Future[Frame]], int]:
    """Return the seconds, the previews and the number of finished pictures."""
    jobs_by_id = {job.id: job for job in jobs}
    started_at = last_snapshot_at = time.perf_counter()
    next_frame_at = dict[str, float]()
    frames = list[Future[Frame]]()
    ladders = list[Future[bytes]]()
    finished_count = 0
    while not engine.is_idle:
        with decode_worker.cores.hold(WorkKind.STEP):
            events = engine.step()
        now = time.perf_counter()
        for event in events:
            finished_count += isinstance(event, LatentsDone)
            if not is_watched:
                continue
            if isinstance(event, LatentsDone):
                ladders.append(decode_worker.encode_ladder(event, jobs_by_id[event.job]))
            elif isinstance(event, StepDone) and event.x0 is not None and now >= next_frame_at.get(event.job, 0.0):
                next_frame_at[event.job] = now + PREVIEW_SECONDS
                frames.append(decode_worker.render_frame(event, jobs_by_id[event.job], 0, 0.0))
        if is_watched and now - last_snapshot_at >= SNAPSHOT_SECONDS:
            last_snapshot_at = now
            for job in jobs:
                engine.take_snapshots(job.id, 1)
    for ladder in ladders:
        ladder.result()
    return time.perf_counter() - started_at, frames, finished_count


def _check_finished(finished_count: int, expected_count: int) -> None:
    """Raise RuntimeError if pictures failed: a failed job takes no time and would look fast."""
    if not 0 < finished_count == expected_count:
        raise RuntimeError(f"{finished_count} pictures were finished, not {expected_count}: there is no figure")


def measure_cancel_delay(family: Family, load: Workload) -> FigureRow:
    """Count the steps that still run with a job's rows after it was cancelled."""
    engine = Engine({family.name: family}, rows=load.batch_limit)
    jobs = load.make_jobs(family)
    _add_jobs(engine, jobs)
    has_started = any(_is_step_of(event, jobs[0]) for _ in range(load.users) for event in engine.step())
    engine.cancel(jobs[0].id)
    late_steps = 0
    while any(_is_step_of(event, jobs[0]) for event in engine.step()):
        late_steps += 1
    for job in jobs[1:]:
        engine.cancel(job.id)
    name = "steps until a cancelled job's rows are free"
    return FigureRow(name, late_steps, "≤ 1", "steps", samples=int(has_started))


def _is_step_of(event: object, job: Job) -> bool:
    return isinstance(event, StepDone) and event.job == job.id


def measure_flood_slowdown(family: Family, load: Workload, forward_times: Mapping[int, float]) -> FigureRow:
    """Compare one job beside another user's twenty with the same job alone. `forward_times` are calibrated."""
    lone_job, *_ = load.make_jobs(family)
    flood = replace(load, users=20).make_jobs(family)
    other_jobs = [reassign_job(job, 100 + number) for number, job in enumerate(flood)]
    time_lone_job = partial(_time_lone_job, family, load, forward_times, lone_job)
    ratios = [time_lone_job(other_jobs) / time_lone_job(()) for _ in range(ROUNDS)]
    name = f"one job of {load.count} beside another user's 20 / alone"
    return FigureRow(name, median(ratios), "≤ 3.5" if load.count == 1 else "≤ 2.1", "×")


def reassign_job(job: Job, job_number: int) -> Job:
    """Return the same job under another id, for one other user."""
    billing_key = msgspec.structs.replace(job.billing_key, user="the other")
    return msgspec.structs.replace(job, id=f"{job_number:026d}", billing_key=billing_key)


def _time_lone_job(
    family: Family, load: Workload, forward_times: Mapping[int, float], lone_job: Job, other_jobs: Sequence[Job]
) -> float:
    """Return the seconds until the lone job's steps are done; the other jobs run before it arrives."""
    engine = Engine({family.name: family}, rows=load.batch_limit, forward_times={family.name: forward_times})
    _add_jobs(engine, other_jobs)
    for _ in range(3):
        engine.step()
    started_at = time.perf_counter()
    engine.add(lone_job)
    finished_count = 0
    while engine.take_snapshots(lone_job.id, 1):
        finished_count += sum(isinstance(event, LatentsDone) and event.job == lone_job.id for event in engine.step())
    seconds = time.perf_counter() - started_at
    _check_finished(finished_count, load.count)
    return seconds


def _add_jobs(engine: Engine, jobs: Sequence[Job]) -> None:
    for job in jobs:
        engine.add(job)
