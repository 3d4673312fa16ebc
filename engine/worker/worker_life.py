"""How a worker presents itself, lives and ends: its profile, deadlines of its threads, heartbeats, its shutdown.

A worker that misses a deadline stops its heartbeats (`Stuck`), so its jobs go to others, and ends, so that its
supervisor restarts it. A stuck worker must not look alive.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import statistics
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from engine.bus import BrokerUnreachable, Bus
from engine.contract import ModelProfile, Presence
from engine.worker.result_publisher import ResultPublisher
from engine.worker.run import ActiveRuns, JobRun, receive_regularly

Phase = Literal["load", "encode", "step", "decode"]

DEADLINES: dict[str, float] = {"load": 900.0, "encode": 60.0, "decode": 300.0}  # seconds
MIN_STEP_DEADLINE = 10.0
STEP_FACTOR = 20.0
MAX_REMEMBERED_STEPS = 101

log = logging.getLogger(__name__)


class Watchdog:
    """Written by the working threads, read by the heartbeat loop: single assignments, no lock.

    `slowest_step`: calibrated seconds of the slowest step of the loaded models. So a step of a large model after many
    of a small one does not count as late.
    """

    def __init__(self, slowest_step: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slowest_step = slowest_step
        self._current_phases: dict[str, tuple[Phase, float]] = {}
        self._step_times: deque[float] = deque(maxlen=MAX_REMEMBERED_STEPS)

    @contextmanager
    def time_phase(self, thread: str, phase: Phase) -> Generator[None]:
        """Time a phase of `thread`. The first step counts as loading, since it may still compile and allocate."""
        start = self._clock()
        self.start_phase(thread, "load" if phase == "step" and not self._step_times else phase)
        try:
            yield
        finally:
            self.end_phase(thread)
            if phase == "step":
                self._step_times.append(self._clock() - start)

    def start_phase(self, thread: str, phase: Phase) -> None:
        """Note that `thread` starts `phase` now."""
        self._current_phases[thread] = (phase, self._clock())

    def end_phase(self, thread: str) -> None:
        self._current_phases.pop(thread, None)

    def get_median_step_seconds(self) -> float:
        """Return the median of the last steps; 0 before the first."""
        return statistics.median(tuple(self._step_times)) if self._step_times else 0.0

    def get_deadline(self, phase: Phase) -> float:
        if phase == "step":
            return max(MIN_STEP_DEADLINE, STEP_FACTOR * max(self.get_median_step_seconds(), self._slowest_step))
        if phase == "decode":  # a decode may wait for a step (`engine.device.core_turns`)
            return DEADLINES[phase] + self.get_deadline("step")
        return DEADLINES[phase]

    def find_missed_deadline(self) -> str | None:
        """Return a sentence about a missed deadline; None when there is none."""
        now = self._clock()
        for thread, (phase, start) in dict(self._current_phases).items():
            if now - start > self.get_deadline(phase):
                return (
                    f"{thread} has been in one {phase} for {now - start:.0f} s (at most "
                    f"{self.get_deadline(phase):.0f} s)."
                )
        return None


class Stuck(RuntimeError):
    """The engine or the decode worker missed a deadline or crashed: the process must be restarted."""


class Heartbeats:
    """Heartbeats, and the tombstones that cancel a run."""

    def __init__(
        self, bus: Bus, active_runs: ActiveRuns, result_publisher: ResultPublisher, watchdog: Watchdog
    ) -> None:
        self._bus = bus
        self._active_runs = active_runs
        self._result_publisher = result_publisher
        self._watchdog = watchdog

    async def renew_runs(self) -> None:
        """Renew for ever. Raises `Stuck` when a deadline was missed."""
        while True:
            if (missed_deadline := self._watchdog.find_missed_deadline()) is not None:
                raise Stuck(missed_deadline)
            await asyncio.gather(*(self._renew_run(run) for run in self._active_runs))
            self._active_runs.presence_changed.set()
            await asyncio.sleep(self._bus.limits.renewal_interval)

    async def _renew_run(self, run: JobRun) -> None:
        try:
            for handle in list(run.handles.values()):
                await handle.in_progress()
            request_time = time.monotonic()
            if await self._bus.renew_claim(run.claim):
                run.renewal_time = request_time
            elif run in self._active_runs:
                abandonment = self._active_runs.abandon(run, "its claim has lapsed or gone to another worker")
                self._active_runs.spawn(abandonment)  # it waits for the engine's current step; the heartbeat must not
        except BrokerUnreachable as error:
            log.warning("job %s: %s", run.job.id, error)

    async def watch_cancels(self) -> None:
        """Receive cancels, for ever."""
        await receive_regularly(self._bus.watch_cancelled, self._cancel_run)

    async def recheck_cancels(self) -> None:
        """Check every run for a cancel that was missed during an outage."""
        for run in self._active_runs:
            if await self._bus.is_cancelled(run.job.id):
                self._cancel_run(run.job.id)

    def _cancel_run(self, job: str) -> None:
        run = self._active_runs.get(job)
        if run is not None and run.try_end():
            self._active_runs.spawn(self._finish_cancel(run))

    async def _finish_cancel(self, run: JobRun) -> None:
        try:
            steps = await self._active_runs.stop_run(run)
            await self._result_publisher.publish_cancelled(run, min(steps, run.end_step))
        except BrokerUnreachable as error:
            await self._active_runs.abandon(run, str(error))


PARENT_CHECK_SECONDS = 0.5  # between two checks of the parent process


async def act_on_parent_exit(parent: int, on_exit: Callable[[], None]) -> None:
    """Call `on_exit` once the parent process has died: nothing else would ever stop this worker."""
    if not parent:
        return
    while os.getppid() == parent:
        await asyncio.sleep(PARENT_CHECK_SECONDS)
    log.warning("the parent process %d of this worker has ended", parent)
    on_exit()


@asynccontextmanager
async def drain_at_end(drain: Callable[[], None], parent: int) -> AsyncGenerator[None]:
    """In the body, SIGTERM, SIGINT and the end of the parent process call `drain`, and do not end this process."""
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, drain)
    parent_watch = asyncio.create_task(act_on_parent_exit(parent, drain))
    try:
        yield
    finally:
        parent_watch.cancel()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signal_number)


async def run_until_stopped(
    stop_signal: asyncio.Future[None], coroutines: Sequence[Coroutine[object, object, None]]
) -> None:
    """Run all until the signal comes or one of them ends; then cancel the others. Raises what that one raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait([stop_signal, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for finished_task in done:
            finished_task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_shutdown_steps(*steps: Callable[[], Awaitable[None]]) -> None:
    """Run the steps in order. One that does not reach the broker is logged, and the next follows."""
    for step in steps:
        try:
            await step()
        except BrokerUnreachable as error:
            log.warning("%s", error)


def make_build_label(drawn_by: str) -> str:
    """Return the versions of a worker's software: pictures are bit-identical only within one build."""
    try:
        package_version = version("darkroom-bot")
    except PackageNotFoundError:
        package_version = "source"
    return f"darkroom {package_version}, {drawn_by}"[:128]


@dataclass(frozen=True)
class WorkerProfile:
    """A worker's presence without its current state. `rows`: rows that it runs at once."""

    name: str
    device: str
    rows: int
    models: tuple[ModelProfile, ...] = ()
    pools: tuple[str, ...] = ("default",)
    build: str = ""
    has_picture_check: bool = False
    upscale_ms: float = 0.0

    def make_presence(self, free_rows: int) -> Presence:
        """Return the presence to announce now."""
        return Presence(
            worker=self.name,
            pools=self.pools,
            models=self.models,
            device=self.device,
            rows=self.rows,
            free=free_rows,
            software_build=self.build,
            has_picture_check=self.has_picture_check,
            upscale_ms=self.upscale_ms,
        )
