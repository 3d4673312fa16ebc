"""Runs one job to its end in this process, without a broker: `darkroom imagine` uses it if no `darkroom up` runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import MappingProxyType

from engine.batching.engine import Engine, Event, JobFailure, StepDone
from engine.batching.engine import LatentsDone as Finished
from engine.batching.job_images import prepare_plan
from engine.contract import Frame, Job, JobRejected, Recipe, find_done_share
from engine.device.core_turns import CoreTurns, WorkKind
from engine.models.family import Family
from engine.output.decode_worker import DecodeWorker, choose_candidates
from engine.preview_maps.latent_map import MapStore


@dataclass(frozen=True)
class LocalResult:
    """PNGs and encoded ladders in the order of the images, the number of shown frames, and timings."""

    pictures: list[bytes]
    ladders: list[bytes]
    frame_count: int
    seconds: float
    ms_per_step: float


FRAME_INTERVAL_SECONDS = 0.5  # seconds between two frames of an image: one at each step took longer than the step


def run_locally(
    job: Job,
    families: Mapping[str, Family],
    blobs: Mapping[str, bytes] = MappingProxyType({}),
    *,
    on_frame: Callable[[Frame], None] | None = None,
    rows: int = 32,
    map_store: MapStore | None = None,
) -> LocalResult:
    """Run the job to its end; `on_frame` gets live previews in this thread. Raises `JobRejected` if it cannot be done.

    `blobs`: the recipe's pictures or ladder, by SHA-256. `map_store`: where fitted preview maps are stored.
    """
    on_cpu = all(family.device.type == "cpu" for family in families.values())
    engine = Engine(families, rows=rows)
    decode_worker = DecodeWorker(families, map_store=map_store, cores=CoreTurns(on_cpu))
    try:
        return _LocalRun(job, families, engine, decode_worker, on_frame).run(blobs)
    finally:
        engine.close()
        decode_worker.close()


class _LocalRun:
    def __init__(
        self,
        job: Job,
        families: Mapping[str, Family],
        engine: Engine,
        decode_worker: DecodeWorker,
        on_frame: Callable[[Frame], None] | None,
    ) -> None:
        self._job = job
        self._families = families
        self._engine = engine
        self._decode_worker = decode_worker
        self._on_frame = on_frame
        self._frame_futures: dict[int, Future[Frame]] = {}
        self._picture_futures: dict[int, Future[bytes]] = {}
        self._ladder_futures: dict[int, Future[bytes]] = {}
        self._frame_due_at: dict[int, float] = {}  # image → when its next frame is due
        self._candidates: list[Finished] = []
        self._frames_shown = 0
        self._started_at = time.monotonic()
        self._steps = 0

    def run(self, blobs: Mapping[str, bytes]) -> LocalResult:
        prepare_plan(self._job, self._families)  # before anything is encoded: it may load the model again
        if isinstance(self._job.task, Recipe) and (self._job.ladder or self._on_frame is not None):
            self._decode_worker.prepare_preview(self._job.task.model)
        init_latents = self._decode_worker.encode_init_images(self._job, blobs).result()
        self._engine.add(self._job, (), init_latents, self._decode_worker.prepare_pictures(self._job, blobs).result())
        self._engine.watch(self._job.id, self._on_frame is not None)
        stepping_began = time.monotonic()
        while not self._engine.is_idle:
            if not self._engine.wait_for_work():
                continue
            with self._decode_worker.cores.hold(WorkKind.STEP):
                events = self._engine.step()
            self._steps += 1
            self._deliver_frames()
            for event in events:
                self._handle_event(event)
        stepping_seconds = time.monotonic() - stepping_began
        if self._candidates:
            self._render_chosen()
        pictures = [self._picture_futures[image].result() for image in sorted(self._picture_futures)]
        ladders = [self._ladder_futures[image].result() for image in sorted(self._ladder_futures)]
        seconds = time.monotonic() - self._started_at
        return LocalResult(
            pictures, ladders, self._frames_shown, seconds, 1000 * stepping_seconds / max(1, self._steps)
        )

    def _handle_event(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._request_frame(event)
        elif isinstance(event, JobFailure):
            raise JobRejected(event.reason, event.blame)
        elif isinstance(self._job.task, Recipe) and self._job.task.needs_choice:
            self._candidates.append(event)
        else:
            self._render_results(event, self._job)

    def _request_frame(self, event: StepDone) -> None:
        elapsed = time.monotonic() - self._started_at
        is_due = event.image not in self._frame_futures and elapsed >= self._frame_due_at.get(event.image, 0.0)
        if self._on_frame is not None and event.x0 is not None and is_due and self._is_shown(event.image):
            self._frame_due_at[event.image] = elapsed + FRAME_INTERVAL_SECONDS
            done_share = find_done_share(self._job.task, event.step) if isinstance(self._job.task, Recipe) else 1.0
            seconds_left = elapsed * (1.0 - done_share) / done_share if done_share else 0.0
            self._frame_futures[event.image] = self._decode_worker.render_frame(event, self._job, 0, seconds_left)

    def _is_shown(self, image: int) -> bool:
        recipe = self._job.task
        return not isinstance(recipe, Recipe) or recipe.shows_image(image)

    def _render_chosen(self) -> None:
        candidates = sorted(self._candidates, key=lambda event: event.image)
        scores = self._decode_worker.score_candidates(candidates, self._job).result()
        job, events = choose_candidates(self._job, candidates, scores)
        for event in events:
            self._render_results(event, job)

    def _render_results(self, event: Finished, job: Job) -> None:
        self._picture_futures[event.image] = self._decode_worker.render_picture(event, job)
        if job.ladder:
            self._ladder_futures[event.image] = self._decode_worker.encode_ladder(event, job, is_for_film=True)

    def _deliver_frames(self) -> None:
        for image, future in list(self._frame_futures.items()):
            if self._on_frame is not None and future.done():
                del self._frame_futures[image]
                if future.exception() is None:  # else the decode worker has logged it; the job goes on
                    self._on_frame(future.result())
                    self._frames_shown += 1
