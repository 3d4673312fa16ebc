"""Pauses, weights and paces of running jobs: applies the bot's messages to the engine, and limits the length of pauses.

Nothing is stored: a job that moves to another worker runs on there. A paused job keeps its claim, its snapshots and its
place, while other jobs use its rows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from engine.bus import BrokerUnreachable, Bus
from engine.contract import ControlMessage, Recipe
from engine.worker.active_runs import ActiveRuns
from engine.worker.run import JobRun

log = logging.getLogger(__name__)

MAX_PAUSE_SECONDS = 900.0  # sum of a job's pauses
RETRY_SECONDS = 0.25
MAX_PACED_SECONDS = 3600.0  # a pace lets a job last so long at most, from when it is set
CHECK_SECONDS = 0.5  # seconds between checks whether another model needs the memory of a paused job's


class RunControl:
    """Ignores messages about jobs that are not here.

    `is_memory_contended`: whether a job has waited long enough for memory that models in use occupy. Then every pause
    and every pace ends.
    """

    def __init__(
        self, bus: Bus, active_runs: ActiveRuns, is_memory_contended: Callable[[], bool] = lambda: False
    ) -> None:
        self._bus = bus
        self._active_runs = active_runs
        self._is_memory_contended = is_memory_contended

    async def listen(self) -> None:
        """Receive pauses and weights, for ever."""
        self._active_runs.spawn(self._end_pauses_for_memory())
        await self._receive_messages()

    async def _end_pauses_for_memory(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for run in self._active_runs if self._is_memory_contended() else ():
                if (run.pause_timer is not None or run.pace) and run.model_in_use:
                    run.set_pace(0.0)
                    self._end_pause(run)

    async def _receive_messages(self) -> None:
        while True:
            try:
                async for message in self._bus.watch_control_messages():
                    self._apply_message(message)
            except BrokerUnreachable as error:
                log.warning("%s", error)
                await asyncio.sleep(RETRY_SECONDS)

    def _apply_message(self, message: ControlMessage) -> None:
        run = self._active_runs.get(message.job)
        if run is None or run.is_ended or not isinstance(run.job.task, Recipe):
            return
        if message.action == "weigh":
            run.weight = message.weight
        elif message.action == "pace":
            run.set_pace(min(message.pace, MAX_PACED_SECONDS / max(1, run.evaluations_left)))
        elif message.action == "pause":
            self._pause(run)
        else:
            _unpause(run)
        self._active_runs.presence_changed.set()  # a paused job's rows are free
        self._active_runs.spawn(self._update_engine(run))

    def _pause(self, run: JobRun) -> None:
        """Pause a run; all its pauses share one time limit."""
        seconds_left = MAX_PAUSE_SECONDS - run.paused_seconds
        if run.pause_timer is None and seconds_left > 0:
            run.pause_timer = asyncio.get_running_loop().call_later(seconds_left, self._end_pause, run)

    def _end_pause(self, run: JobRun) -> None:
        _unpause(run)
        if run in self._active_runs and not run.is_ended:
            log.info("job %s resumes: its pause was too long, or other models need the memory of its model", run.job.id)
            self._active_runs.presence_changed.set()
            self._active_runs.spawn(self._update_engine(run))

    async def _update_engine(self, run: JobRun) -> None:
        """Apply the run's state when the engine gets to it, so the order of two calls does not matter."""
        await self._active_runs.thread.call(run.apply_control)


def _unpause(run: JobRun) -> None:
    if run.pause_timer is not None:
        seconds_left = run.pause_timer.when() - asyncio.get_running_loop().time()
        run.paused_seconds = MAX_PAUSE_SECONDS - max(0.0, seconds_left)
        run.pause_timer.cancel()
        run.pause_timer = None
        run.last_step_time = time.monotonic()  # the pause must not count in its pace
