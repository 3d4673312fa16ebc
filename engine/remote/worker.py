"""The worker whose engine is a backend: takes jobs from the queue and holds each until its pictures are stored."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from importlib import import_module
from typing import TypeVar

from msgspec.structs import replace

from engine.bus import BrokerUnreachable, Bus
from engine.contract import AmendmentRequest, Blame, Job, JobRejected, Presence, Recipe, Snapshot, find_missing_part
from engine.process.backend_kinds import PACKAGE
from engine.process.log_format import log_context
from engine.process.settings import BackendSettings, PictureCheckSettings, WorkerSettings
from engine.remote.connection_state import ConnectionState, MeasuredTimes
from engine.remote.drawing import Backend, BackendUnreachable
from engine.remote.pictures import ChecksPictures, RunPictures, Verdicts
from engine.worker.intake import Intake, JobPuller
from engine.worker.result_publisher import ResultPublisher
from engine.worker.run import ActiveRuns, JobEngine, JobRun
from engine.worker.run_control import SnapshotSaver, WatchedJobs
from engine.worker.worker_life import (
    Heartbeats,
    SignalHandlers,
    Watchdog,
    WorkerProfile,
    act_on_parent_exit,
    make_build_label,
    run_shutdown_steps,
    run_until_stopped,
)

log = logging.getLogger(__name__)

STOP_SECONDS = 6.0  # a little more than backends take to ask for a stop
T = TypeVar("T")
ROWS = 8  # of a grid of four with guidance; a job that the backend would not begin yet waits in the fair queue


class BackendWorker:
    """`run` returns after `drain`, and raises `ConnectionEnded` when the process must end."""

    def __init__(
        self, bus: Bus, backend: Backend, profile: WorkerProfile, state: ConnectionState, verdicts: Verdicts
    ) -> None:
        self._bus = bus
        self._profile = profile
        self._state = state
        self.active_runs = ActiveRuns(RemoteEngine(), verdicts)
        self._result_publisher = ResultPublisher(bus, profile.name, self.active_runs)
        self._pictures = RunPictures(bus, backend, state, self._result_publisher, verdicts)
        self._intake = Intake(
            bus,
            profile.name,
            self.active_runs,
            self._result_publisher,
            self._pictures,
            self._admit,
            self._find_rejection,
        )
        self._job_puller = JobPuller(
            bus,
            self.active_runs,
            self._intake,
            profile.pools,
            lambda: profile.rows,
            self._make_presence,
            profile.name,
            lambda: backend.concurrency if state.is_reachable else 0,
        )
        self._heartbeats = Heartbeats(bus, self.active_runs, self._result_publisher, Watchdog())
        self._watched_jobs = WatchedJobs(bus, self.active_runs)
        self._snapshot_saver = SnapshotSaver(bus, self.active_runs, self._result_publisher, self._watched_jobs)
        self._stop_signal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        state.on_change = self.active_runs.presence_changed.set
        state.is_busy = lambda: len(self.active_runs) > 0

    def drain(self) -> None:
        """Hand back all jobs and stop. Call it on the loop (a signal's callback)."""
        if not self._stop_signal.done():
            self._stop_signal.set_result(None)

    async def run(self) -> None:
        """Work until drained. Raises `ConnectionEnded` from the bus."""
        self._bus.add_reconnect_callback(self._heartbeats.recheck_cancels)
        coroutines: list[Coroutine[object, object, None]] = [
            self._state.watch(),
            self._job_puller.pull_regularly(),
            self._job_puller.announce_regularly(),
            self._heartbeats.renew_runs(),
            self._heartbeats.watch_cancels(),
            self._watched_jobs.listen(),
            self._snapshot_saver.save_regularly(),
            self._bus.wait_closed(),
        ]
        try:
            await run_until_stopped(self._stop_signal, coroutines)
        finally:
            await self.active_runs.close()
        await self._shut_down()

    async def _shut_down(self) -> None:
        """Shut down in this order, so that jobs we hand back do not come back to us."""
        ended_tasks = [task for run in self.active_runs for task in run.tasks]
        await run_shutdown_steps(self._bus.stop_pulling, self._snapshot_saver.hand_back_all, self._announce_departure)
        if ended_tasks:
            _, hanging = await asyncio.wait(ended_tasks, timeout=STOP_SECONDS)  # they ask the backend to stop
            if hanging:
                log.warning("the backend may draw on: %d jobs did not end in time", len(hanging))

    async def _announce_departure(self) -> None:
        await self._bus.remove_presence(self._profile.name)

    def _make_presence(self) -> Presence | None:
        """Return what to announce; None while the backend does not answer, as if this worker were not there."""
        if not self._state.is_reachable:
            return None
        presence = self._profile.make_presence(self._job_puller.free_rows)
        return replace(presence, models=self._state.list_profiles())

    def _find_rejection(self, job: Job) -> str:
        """Return why a job is for another worker; empty: this one may claim it."""
        recipe = job.task
        if not isinstance(recipe, Recipe):
            return ""
        profile = self._state.find_profile(recipe.model)
        if profile is None:
            return f"This worker's backend has no model called {recipe.model} now."
        if recipe.revision not in ("", profile.revision) or recipe.quantization != profile.quantization:
            return f"This worker's backend has another version of {recipe.model} than the recipe names."
        missing = find_missing_part(recipe, profile)
        return f"This worker's backend lacks a part that the recipe needs: {missing.kind}." if missing else ""

    async def _admit(self, run: JobRun, snapshots: Sequence[Snapshot]) -> None:
        """Begin to draw a run, from its start whatever others did before."""
        run.steps_done = dict.fromkeys(range(run.image_count), run.first_step)
        run.draws_in_turn = True
        run.is_watched = self._watched_jobs.is_watched(run.job.id)
        self.active_runs.spawn(self._draw_guarded(run), run)

    async def _draw_guarded(self, run: JobRun) -> None:
        """Draw a run; an error ends only this job. A lost backend hands it back."""
        with log_context(run.job.id):
            try:
                await self._pictures.draw_run(run)
            except BackendUnreachable as error:
                self._state.note_loss(error)
                await self._give_up(run, str(error), "worker")
            except JobRejected as error:
                await self._give_up(run, error.sentence, error.blame)
            except BrokerUnreachable as error:
                await self.active_runs.abandon(run, str(error))
            except Exception:
                log.exception("job %s failed", run.job.id)
                await self._give_up(run, "The picture could not be written.", "us")

    async def _give_up(self, run: JobRun, sentence: str, blame: Blame) -> None:
        """Fail a run once its start is announced."""
        await run.start_announced.wait()
        await self._result_publisher.fail_run(run, sentence, blame)


ALL_MODELS = ("added",)  # the settings' default: whatever there is


async def run_backend_worker(settings: WorkerSettings) -> None:
    """Work until SIGTERM or SIGINT, then hand all jobs back.

    Raises `SettingError`, `BrokerUnreachable`, or `ConnectionEnded` where the process must end.
    """
    assert settings.backend is not None
    wanted = () if settings.models == ALL_MODELS else settings.models
    backend = await open_backend(settings.backend, wanted)
    token = settings.nats_token.get_secret_value()
    key = settings.nats_key.get_secret_value()
    try:
        bus = await Bus.connect(settings.nats, token, name=settings.worker_name, key=key, ca_file=settings.nats_ca)
        try:
            await bus.declare(settings.pools)
            await _run_jobs(bus, backend, settings, wanted)
        finally:
            await bus.close()
    finally:
        await backend.close()


async def _run_jobs(bus: Bus, backend: Backend, settings: WorkerSettings, wanted: tuple[str, ...]) -> None:
    assert settings.backend is not None
    times = await asyncio.to_thread(MeasuredTimes, settings.data)
    verdicts = Verdicts(await asyncio.to_thread(load_checks, settings.check))
    state = ConnectionState(backend, settings.backend.kind, times, wanted)
    profile = make_worker_profile(settings, has_check=verdicts.has_check)
    worker = BackendWorker(bus, backend, profile, state, verdicts)
    with SignalHandlers(worker.drain):
        parent_watch = asyncio.create_task(act_on_parent_exit(settings.parent, worker.drain))
        try:
            await worker.run()
        finally:
            parent_watch.cancel()
            verdicts.close()


def load_checks(check: PictureCheckSettings | None) -> ChecksPictures | None:
    """Return the picture check, which alone needs torch; None where no setting names one. Raises `JobRejected`."""
    if check is None:
        return None
    from engine.device.memory import choose_device
    from engine.output.picture_check import JobVerdicts, PictureCheck

    return JobVerdicts(PictureCheck.load(check.folder, check.labels, check.threshold, choose_device()))


def make_worker_profile(settings: WorkerSettings, *, has_check: bool) -> WorkerProfile:
    """Return what the worker announces besides its models. The address stays here: members may see the rest."""
    assert settings.backend is not None
    kind = settings.backend.kind
    return WorkerProfile(
        settings.worker_name,
        f"backend: {kind}",
        ROWS,
        pools=settings.pools,
        build=make_build_label(kind),
        has_picture_check=has_check,
    )


async def open_backend(settings: BackendSettings, wanted: Sequence[str]) -> Backend:
    """Return the client of the backend's kind. Raises `SettingError` for files that it cannot use."""
    return await import_module(f"{PACKAGE}.{settings.kind}.client").open_backend(settings, wanted)


class RemoteEngine:
    """A `JobEngine` that has nothing to change: pauses and weights are no words of a backend's API."""

    async def call(self, action: Callable[[JobEngine], T]) -> T:
        return action(self)

    def cancel(self, job: str) -> int:
        return 0  # a run counts its steps itself

    def watch(self, job: str, is_watched: bool = True) -> None:
        """A run looks whether it is watched when a preview arrives."""

    def pause(self, job: str) -> None:
        """A backend draws on."""

    def resume(self, job: str) -> None:
        """A backend drew on."""

    def set_job_pace(self, job: str, seconds: float) -> None:
        """A backend draws as fast as it can."""

    def set_job_weight(self, job: str, weight: float) -> None:
        """A backend has no shares."""

    def amend(self, job: str, request: AmendmentRequest) -> Recipe:
        """Refuse every change: the server runs a picture as one call."""
        raise JobRejected("This picture is drawn by another server, which cannot be steered.", "member")

    def take_snapshots(self, job: str, epoch: int) -> list[Snapshot]:
        """Return none: a picture that moves to another worker starts over."""
        return []
