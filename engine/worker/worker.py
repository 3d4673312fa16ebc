"""The worker takes jobs from the queue, runs them in one engine, and holds each until its result is stored.

It loads a job's model before the engine takes the job, and calibrates by real work: it times steps and decodes, and
updates costs, batch limits and announcements.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType

from msgspec.structs import replace

from engine.batching.engine import Engine, Event, JobFailure, LatentsDone, StepDone
from engine.batching.job_images import prepare_plan, reason_to_decline
from engine.batching.trajectory import BatchRun
from engine.bus import BrokerUnreachable, Bus
from engine.calibration.calibration import Calibration, Refinement
from engine.contract import Job, JobModelLoading, ModelProgress, Presence, Recipe, Snapshot
from engine.device.core_turns import WorkKind, compute_in_thread
from engine.model_cache.cache import ModelCache
from engine.model_cache.loaded_models import LoadedModels
from engine.models.family import Family
from engine.output.decode_worker import DecodeWorker
from engine.output.upscaler import Upscaler
from engine.process.log_format import log_context
from engine.process.system import trim_heap
from engine.worker.engine_thread import EngineThread
from engine.worker.intake import Intake, JobPuller
from engine.worker.model_requests import DecodeService, DescribeService
from engine.worker.result_publisher import ResultPublisher
from engine.worker.run import ActiveRuns, JobRun
from engine.worker.run_control import AmendmentService, RunControl, SnapshotSaver, WatchedJobs
from engine.worker.run_output import RunOutput
from engine.worker.worker_life import Heartbeats, Stuck, Watchdog, WorkerProfile, run_shutdown_steps, run_until_stopped

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.25
IDLE_SECONDS = 1.0  # between two checks for running jobs


class Worker:
    """`run` returns after `drain`, and raises `Stuck` or `ConnectionEnded` when the process must end."""

    def __init__(
        self,
        bus: Bus,
        engine: Engine,
        decode_worker: DecodeWorker,
        profile: WorkerProfile,
        watchdog: Watchdog,
        upscaler: Upscaler | None = None,
        model_cache: ModelCache | None = None,
        calibrations: Mapping[str, Calibration] = MappingProxyType({}),
    ) -> None:
        self._bus = bus
        self._profile = profile
        self._thread = EngineThread(engine, watchdog, self._on_events, self._on_crash, decode_worker.cores)
        self.active_runs = ActiveRuns(self._thread, decode_worker)
        self._model_cache = model_cache or ModelCache([], LoadedModels(0))
        self._calibration_updater = CalibrationUpdater(
            self._model_cache, self.active_runs, self._thread, calibrations, self._raise_rows
        )
        self._thread.on_step = self._calibration_updater.record_step
        decode_worker.on_picture_decoded = self._calibration_updater.record_decode
        self._model_cache.loader.report_activity = lambda: watchdog.start_phase("the loader", "load")
        self._model_cache.loader.report_idle = lambda: watchdog.end_phase("the loader")
        self._model_fetcher = ModelFetcher(bus, self._model_cache, self.active_runs, profile.name, profile.pools)
        self._result_publisher = ResultPublisher(bus, profile.name, self.active_runs)
        self._upscaler = upscaler or Upscaler()
        self._output = RunOutput(bus, decode_worker, self._upscaler, self._result_publisher, watchdog)
        self._intake = Intake(
            bus,
            profile.name,
            self.active_runs,
            self._result_publisher,
            self._output,
            self._admit,
            self._model_fetcher.find_rejection,
        )
        self._job_puller = JobPuller(
            bus,
            self.active_runs,
            self._intake,
            profile.pools,
            lambda: self._profile.rows,
            self._make_presence,
            profile.name,
        )
        self._heartbeats = Heartbeats(bus, self.active_runs, self._result_publisher, watchdog)
        self._watched_jobs = WatchedJobs(bus, self.active_runs)
        self._amendment_service = AmendmentService(
            bus,
            self.active_runs,
            self._result_publisher,
            profile.pools,
            self._output.prepare_texts,
            self._output.hurry_preview,
        )
        self._run_control = RunControl(bus, self.active_runs, self._model_cache.is_memory_contended)
        self._snapshot_saver = SnapshotSaver(bus, self.active_runs, self._result_publisher, self._watched_jobs)
        self.describe_service = DescribeService(self._thread, decode_worker, self._model_cache, profile.rows)
        self._decode_service = DecodeService(decode_worker, self._model_cache)
        self._stop_signal: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def free_rows(self) -> int:
        return self._job_puller.free_rows

    def drain(self) -> None:
        """Hand back all jobs and stop. Call it on the loop (a signal's callback)."""
        if not self._stop_signal.done():
            self._stop_signal.set_result(None)

    async def run(self) -> None:
        """Work until drained. Raises `Stuck`, and `ConnectionEnded` from the bus."""
        self._thread.start()
        self._bus.add_reconnect_callback(self._heartbeats.recheck_cancels)
        coroutines: list[Coroutine[object, object, None]] = [
            self._job_puller.pull_regularly(),
            self._job_puller.announce_regularly(),
            self._heartbeats.renew_runs(),
            self._heartbeats.watch_cancels(),
            self._watched_jobs.listen(),
            self._run_control.listen(),
            self._amendment_service.listen(),
            self._snapshot_saver.save_regularly(),
            self._output.send_previews(),
            self._bus.wait_closed(),
            self._serve_requests(),
            self._calibration_updater.update_regularly(),
            self._model_fetcher.report_progress(),
            self._release_memory(),
        ]
        try:
            await run_until_stopped(self._stop_signal, coroutines)
        finally:
            self.describe_service.close()
            self._decode_service.close()
            await self.active_runs.close()
            await self._model_cache.close()
            self._upscaler.close()
        await self._shut_down()

    async def _shut_down(self) -> None:
        """Shut down in this order, so that jobs we hand back do not come back to us."""
        await run_shutdown_steps(
            self._stop_answering, self._bus.stop_pulling, self._snapshot_saver.hand_back_all, self._announce_departure
        )
        await self._thread.stop()

    async def _stop_answering(self) -> None:
        """Let new requests go to other workers."""
        await self._bus.serve_describe((), self.describe_service.answer_request)
        await self._bus.serve_decode((), (), self._decode_service.answer_request)

    async def _announce_departure(self) -> None:
        await self._bus.remove_presence(self._profile.name)

    async def _serve_requests(self) -> None:
        """Answer requests only for models in memory: no model is loaded for a request."""
        while True:
            try:
                models = self.describe_service.models
                await self._bus.serve_describe(models, self.describe_service.answer_request)
                await self._bus.serve_decode(self._profile.pools, models, self._decode_service.answer_request)
            except BrokerUnreachable as error:
                log.warning("%s", error)
            await asyncio.sleep(RETRY_SECONDS)

    async def _release_memory(self) -> None:
        """Return freed memory to the system after loading, and each time the worker becomes idle."""
        while True:
            await asyncio.to_thread(trim_heap)
            while len(self.active_runs) == 0:
                await asyncio.sleep(IDLE_SECONDS)
            while len(self.active_runs) > 0:
                await asyncio.sleep(IDLE_SECONDS)

    def _raise_rows(self, rows: int) -> None:
        """Raise the announced rows: a model turned out to gain from batches of `rows`."""
        self._profile = dataclasses.replace(self._profile, rows=max(self._profile.rows, rows))

    def _make_presence(self) -> Presence:
        """Return the presence, with the models that are now in the model cache."""
        presence = self._profile.make_presence(self.free_rows)
        return replace(presence, models=self._model_cache.list_models() or presence.models)

    async def _admit(self, run: JobRun, snapshots: Sequence[Snapshot]) -> None:
        def add_to_engine(engine: Engine) -> None:
            if not run.is_ended:  # else a cancel came first, and nothing would remove the job again
                engine.add(run.job, snapshots, init_latents, pictures)
                engine.watch(run.job.id, run.is_watched)
                run.apply_control(engine)

        await self._model_fetcher.fetch_model(run)
        init_latents, pictures = await self._output.load_inputs(run)
        run.is_watched = self._watched_jobs.is_watched(run.job.id)
        run.last_step_time = time.monotonic()
        await self._thread.call(add_to_engine, WorkKind.PICTURE)  # it encodes prompts

    def _on_events(self, events: list[Event], moment: float) -> None:
        for job, group in groupby(events, key=lambda event: event.job):
            run = self.active_runs.get(job)
            if run is not None and not run.is_ended:
                self._on_run_events(run, list(group), moment)

    def _on_run_events(self, run: JobRun, events: list[Event], moment: float) -> None:
        if steps := [(event.image, event.step) for event in events if isinstance(event, StepDone)]:
            run.record_step(steps, moment)
        for event in events:
            match event:
                case StepDone():
                    self._output.queue_preview(run, event)
                case LatentsDone():
                    self.active_runs.spawn(self._run_guarded(run, self._output.publish_image(run, event)), run)
                case JobFailure():
                    self.active_runs.spawn(self._run_guarded(run, self._fail_run(run, event)), run)

    async def _fail_run(self, run: JobRun, event: JobFailure) -> None:
        await run.start_announced.wait()
        await self._result_publisher.fail_run(run, event.reason, event.blame)

    async def _run_guarded(self, run: JobRun, work: Coroutine[object, object, None]) -> None:
        """Run `work`; an error fails only this job."""
        with log_context(run.job.id):
            try:
                await work
            except BrokerUnreachable as error:
                await self.active_runs.abandon(run, str(error))
            except Exception:
                log.exception("job %s failed in its output", run.job.id)
                if run.is_ended:
                    await self.active_runs.abandon(run, "its result could not be published")
                else:
                    await self.active_runs.stop_run(run)
                    await self._result_publisher.fail_run(run, "The picture could not be written.", "us")

    def _on_crash(self, error: BaseException) -> None:
        log.critical("the engine crashed", exc_info=error)
        if not self._stop_signal.done():
            self._stop_signal.set_exception(Stuck(f"The engine crashed: {error!r}"))


REPORT_SECONDS = 0.5


class ModelFetcher:
    """Holds a model in the cache for each run, until the run has left the worker and the engine."""

    def __init__(
        self, bus: Bus, model_cache: ModelCache, active_runs: ActiveRuns, name: str, pools: Sequence[str]
    ) -> None:
        self._bus = bus
        self._model_cache = model_cache
        self._active_runs = active_runs
        self._name = name
        self._pools = pools
        model_cache.on_change = active_runs.presence_changed.set
        active_runs.on_remove = self._on_remove

    def find_rejection(self, job: Job) -> str:
        """Return why the models of this worker cannot run a job; empty: they can."""
        return reason_to_decline(job.task, self._model_cache.list_models())

    async def fetch_model(self, run: JobRun) -> None:
        """Return once the engine can take the run. Raises `JobRejected` where its model cannot be loaded."""
        recipe = run.job.task
        assert isinstance(recipe, Recipe), "only a recipe has a model"
        report_task = asyncio.create_task(self._report_loading(run, recipe.model))
        try:
            is_acquired = await self._model_cache.acquire(recipe.model, recipe.dtype, recipe)
        finally:
            report_task.cancel()
        if run in self._active_runs:
            run.model_in_use = recipe.model if is_acquired else ""
            await compute_in_thread(prepare_plan, run.job, self._model_cache.families)
        elif is_acquired:
            self._model_cache.release(recipe.model)

    async def report_progress(self) -> None:
        """Report in this worker's pools what it loads, and once that the model is ready."""
        last_progress: ModelProgress | None = None
        while True:
            progress = self._model_cache.progress
            if progress is not None and (progress is not last_progress or progress.phase == "load"):
                last_progress = progress
                try:
                    await self._bus.publish_progress(self._name, self._pools, progress)
                except BrokerUnreachable as error:
                    log.debug("%s", error)
            await asyncio.sleep(REPORT_SECONDS)

    async def _report_loading(self, run: JobRun, model: str) -> None:
        await run.start_announced.wait()
        while (fraction := self._model_cache.get_loaded_fraction(model)) is not None:
            try:
                await self._bus.publish_loading(
                    JobModelLoading(job=run.job.id, epoch=run.claim.epoch, model=model, loaded_share=min(1.0, fraction))
                )
            except BrokerUnreachable as error:
                log.debug("job %s: %s", run.job.id, error)
            await asyncio.sleep(REPORT_SECONDS)

    def _on_remove(self, run: JobRun) -> None:
        if run.model_in_use:
            self._active_runs.spawn(self._release_model(run))

    async def _release_model(self, run: JobRun) -> None:
        """Release the model once the engine has dropped the run: a lost run may stay there for a step."""
        await self._active_runs.thread.call(lambda engine: engine.cancel(run.job.id))
        self._model_cache.release(run.model_in_use)


UPDATE_SECONDS = 5.0


class CalibrationUpdater:
    """The engine's thread calls `record_step`, the decode worker's `record_decode`. The rest runs in the event loop."""

    def __init__(
        self,
        model_cache: ModelCache,
        active_runs: ActiveRuns,
        thread: EngineThread,
        calibrations: Mapping[str, Calibration],
        on_rows: Callable[[int], None],
    ) -> None:
        self._model_cache = model_cache
        self._active_runs = active_runs
        self._thread = thread
        self._on_rows = on_rows
        self._refinements = {name: Refinement(calibration) for name, calibration in calibrations.items()}
        self._unsynchronized_steps: list[tuple[BatchRun, float]] = []  # steps that may still be running on the device

    def record_step(self, batch: BatchRun | None, ms: float) -> None:
        """Record a step's time. A device runs asynchronously, so times count only after a synchronisation."""
        if batch is None or (
            self._unsynchronized_steps and self._unsynchronized_steps[0][0].timing_key != batch.timing_key
        ):
            self._unsynchronized_steps.clear()
            return
        self._unsynchronized_steps.append((batch, ms))
        if batch.is_synchronised:
            forward_ms = sum(each for _, each in self._unsynchronized_steps) / sum(
                batch_run.forward_count for batch_run, _ in self._unsynchronized_steps
            )
            self._unsynchronized_steps.clear()
            self._record_forward(batch, forward_ms)

    def record_decode(self, recipe: Recipe, ms: float) -> None:
        """Record the time of a finished picture."""
        family = self._model_cache.families.get(recipe.model)
        refinement = self._refinements.get(recipe.model)
        if family is not None and refinement is not None and recipe.width == recipe.height == family.size:
            refinement.note_decode(ms)

    async def update_regularly(self) -> None:
        """Apply new calibrations regularly, for ever."""
        while True:
            await asyncio.sleep(UPDATE_SECONDS)
            for name, refinement in self._refinements.items():
                if (calibration := refinement.refine()) is not None:
                    await self._apply_calibration(name, calibration)

    async def _apply_calibration(self, name: str, calibration: Calibration) -> None:
        await self._thread.call(
            lambda engine: engine.set_calibration(name, calibration.row_ms, calibration.rows, calibration.bucket_ms)
        )
        self._on_rows(calibration.rows)
        await asyncio.to_thread(self._model_cache.update_calibration, name, calibration)
        self._active_runs.presence_changed.set()

    def _record_forward(self, batch: BatchRun, ms: float) -> None:
        family = self._model_cache.families.get(batch.model)
        refinement = self._refinements.get(batch.model)
        if (
            family is not None
            and refinement is not None
            and _is_native(batch, family)
            and batch.dtype == refinement.calibration.dtype
        ):
            refinement.note_forward(batch.rows, ms)


def _is_native(batch: BatchRun, family: Family) -> bool:
    return batch.shape == family.latent_shape(family.size, family.size) and not batch.has_additions
