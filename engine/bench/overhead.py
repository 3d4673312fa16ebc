"""Rows for the time outside the network: our arithmetic, previews and snapshots; and how fast rows become free."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import msgspec
import torch

from engine.bench.crowd import Load
from engine.bench.row import Row
from engine.cores import Kind
from engine.engine import Developed, Engine, Stepped
from engine.families.family import Conditions, Family
from engine.job import Dtype, Frame, Job, Lora
from engine.lane import Lane
from engine.map_files import MapFiles
from engine.preview import fit

ROUNDS = 3
SAVED_EVERY = 2.0  # seconds between two snapshots, as in `engine.worker.keeping`
SHOWN_EVERY = 0.5  # seconds between two frames of an image: more than Discord's budget lets through


class Timed:
    """Wraps a family and times its forwards."""

    def __init__(self, family: Family) -> None:
        self._family, self.seconds = family, 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self._family, name)

    def denoise(
        self, x: torch.Tensor, t: torch.Tensor, texts: Conditions, dtype: Dtype, loras: tuple[Lora, ...] = ()
    ) -> torch.Tensor:
        begun = time.perf_counter()
        out = self._family.denoise(x, t, texts, dtype, loras)
        if self._family.device.type == "cuda":
            torch.cuda.synchronize(self._family.device)
        self.seconds += time.perf_counter() - begun
        return out


def outside_the_network(family: Family, load: Load) -> Row:
    """Measure the milliseconds of a step outside the network, with eight jobs and no watchers."""
    timed, jobs = Timed(family), load.jobs(family)
    engine = Engine({family.name: timed}, rows=load.rows)  # pyright: ignore[reportArgumentType] # it delegates to the family
    _add(engine, jobs)
    steps, warming = load.steps - 1, 4
    for _ in range(warming):
        engine.step()
    timed.seconds, begun = 0.0, time.perf_counter()
    for _ in range(steps - warming):
        engine.step()
    whole = time.perf_counter() - begun
    step, outside = (1000 * each / (steps - warming) for each in (whole, whole - timed.seconds))
    name = "time outside the network a step, 8 jobs"
    if step >= 20:
        return Row(name, 100 * outside / step, "≤ 2", "%", f"{outside:.2f} ms of {step:.1f}")
    return Row(name, outside, "≤ 0.4", "ms", f"of {step:.1f} ms")


def watched(family: Family, load: Load) -> Row:
    """Measure the slowdown when every image is previewed twice a second and snapshots are taken."""
    ratios = []
    with TemporaryDirectory(ignore_cleanup_errors=True) as data:
        maps = MapFiles(Path(data))
        maps.write(family.revision, fit(family))  # the engine does this once, when idle
        for _ in range(ROUNDS):
            alone = _stepping(family, load, maps, seen=False)
            ratios.append(_stepping(family, load, maps, seen=True) / alone)
    added = 100 * (median(ratios) - 1)
    note = f"8 images, a frame of each every {SHOWN_EVERY:g} s, snapshots every {SAVED_EVERY:g} s, the ladder"
    return Row("previews, snapshots and ladder at 50 steps, of the step time", added, "≤ 5", "%", note)


def _stepping(family: Family, load: Load, maps: MapFiles, seen: bool) -> float:
    """Return the seconds of all steps and ladders, without the decoding of finished pictures."""
    engine, jobs = Engine({family.name: family}, rows=load.rows), replace(load, ladder=seen).jobs(family)
    lane = Lane({family.name: family}, maps=maps)
    _add(engine, jobs)
    by_id = {job.id: job for job in jobs}
    for job in jobs:
        engine.watch(job.id, seen)
    begun = saved = time.perf_counter()
    due, frames, ladders, developed = dict[str, float](), list[Future[Frame]](), list[Future[bytes]](), 0
    while not engine.idle:
        with lane.cores.held(Kind.STEP):
            events = engine.step()
        now = time.perf_counter()
        for event in events:
            if seen and isinstance(event, Stepped) and event.x0 is not None and now >= due.get(event.job, 0.0):
                due[event.job] = now + SHOWN_EVERY
                frames.append(lane.frame(event, by_id[event.job], 0, 0.0))
            developed += isinstance(event, Developed)
            if seen and isinstance(event, Developed):
                ladders.append(lane.ladder(event, by_id[event.job]))
        if seen and now - saved >= SAVED_EVERY:
            saved = now
            for job in jobs:
                engine.snapshots(job.id, 1)
    for ladder in ladders:
        ladder.result()
    took = time.perf_counter() - begun
    lane.close()
    _insist(developed, load.users * load.count)
    if seen and not [frame.result() for frame in frames if not frame.cancelled()]:
        raise RuntimeError("no preview was shown: there is no figure")
    return took


def _insist(developed: int, wanted: int) -> None:
    """Raise RuntimeError if pictures failed: a failed job takes no time and would look fast."""
    if not 0 < developed == wanted:
        raise RuntimeError(f"{developed} pictures were finished, not {wanted}: there is no figure")


def cancelled(family: Family, load: Load) -> Row:
    """Count the steps that still run with a job's rows after it was cancelled."""
    engine, jobs = Engine({family.name: family}, rows=load.rows), load.jobs(family)
    _add(engine, jobs)
    begun = any(_steps(event, jobs[0]) for _ in range(load.users) for event in engine.step())
    engine.cancel(jobs[0].id)
    late = 0
    while any(_steps(event, jobs[0]) for event in engine.step()):
        late += 1
    for job in jobs[1:]:
        engine.cancel(job.id)
    return Row("steps until a cancelled job's rows are free", late, "≤ 1", "steps", samples=int(begun))


def _steps(event: object, job: Job) -> bool:
    return isinstance(event, Stepped) and event.job == job.id


def beside_a_flood(family: Family, load: Load, times: Mapping[int, float]) -> Row:
    """Compare one job beside another user's twenty with the same job alone. `times` are the calibrated times."""
    lone, *_ = load.jobs(family)
    flood = [of_another(job, 100 + number) for number, job in enumerate(replace(load, users=20).jobs(family))]
    lasts = partial(_until, family, load, times, lone)
    ratios = [lasts(flood) / lasts(()) for _ in range(ROUNDS)]
    name = f"one job of {load.count} beside another user's 20 / alone"
    return Row(name, median(ratios), "≤ 3.5" if load.count == 1 else "≤ 2.1", "×")


def of_another(job: Job, number: int) -> Job:
    """Return the same job under another id, for one other user."""
    share = msgspec.structs.replace(job.share, user="the other")
    return msgspec.structs.replace(job, id=f"{number:026d}", share=share)


def _until(family: Family, load: Load, times: Mapping[int, float], lone: Job, others: Sequence[Job]) -> float:
    """Return the seconds until the lone job's steps are done; the other jobs run before it arrives."""
    engine = Engine({family.name: family}, rows=load.rows, times={family.name: times})
    _add(engine, others)
    for _ in range(3):
        engine.step()
    begun = time.perf_counter()
    engine.add(lone)
    developed = 0
    while engine.snapshots(lone.id, 1):
        developed += sum(isinstance(event, Developed) and event.job == lone.id for event in engine.step())
    took = time.perf_counter() - begun
    _insist(developed, load.count)
    return took


def _add(engine: Engine, jobs: Sequence[Job]) -> None:
    for job in jobs:
        engine.add(job)
