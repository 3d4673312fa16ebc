"""The engine's thread: steps while there is work, and runs the event loop's calls between two steps.

Only this thread touches the engine.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from typing import TypeVar

import torch

from engine.batching.engine import Engine, Event
from engine.batching.fault_isolation import DeviceLost
from engine.batching.trajectory import BatchRun
from engine.device.core_turns import CoreTurns, Stopwatch, WorkKind, release_team
from engine.worker.worker_life import Watchdog

T = TypeVar("T")
Command = Callable[[], None]


class EngineThread:
    """`on_events` runs on the event loop with the events of a step and the time (monotonic) of its end.

    `on_step` runs in this thread with the batch of each step and the step's milliseconds. `on_crash` runs on the loop
    when a step raised. The engine's state is then unknown, and the process should end.
    """

    def __init__(
        self,
        engine: Engine,
        watchdog: Watchdog,
        on_events: Callable[[list[Event], float], None],
        on_crash: Callable[[BaseException], None],
        cores: CoreTurns | None = None,
    ) -> None:
        self._engine = engine
        self._watchdog = watchdog
        self._cores = cores or CoreTurns()
        self._on_events = on_events
        self._on_crash = on_crash
        self.on_step: Callable[[BatchRun | None, float], None] = lambda batch, ms: None  # in this thread
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, args=(torch.get_num_threads(),), name="engine", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def call(self, action: Callable[[Engine], T], kind: WorkKind | None = None) -> T:
        """Run `action` between two steps and return its result, or raise its error.

        An action that computes names its `kind` and waits for its turn on the cores; others do not wait.
        """
        future: Future[T] = Future()

        def command() -> None:
            with nullcontext() if kind is None else self._cores.hold(kind):
                self._run_action(future, action)

        self._inbox.put(command)
        return await asyncio.wrap_future(future)

    def _run_action(self, future: Future[T], action: Callable[[Engine], T]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            with self._watchdog.time_phase("the engine", "encode"):
                future.set_result(action(self._engine))
        except BaseException as error:
            future.set_exception(error)
            if isinstance(error, DeviceLost):
                raise

    async def stop(self, timeout: float = 1.0) -> None:
        """Ask the thread to end and wait briefly. It is a daemon, so a stuck one does not block the process's exit."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join, timeout)

    def _run(self, cores: int) -> None:
        torch.set_num_threads(cores)  # not another thread's setting: the number changes the last bits of results
        try:
            while self._run_commands():
                if not self._engine.is_idle:
                    self._run_step()
        except BaseException as error:
            self._call_on_loop(self._on_crash, error)
        finally:
            self._engine.close()

    def _run_commands(self) -> bool:
        """Run all queued calls; when the engine is idle, wait for one or for the next paced step. False: end."""
        is_blocking = self._engine.is_idle
        if is_blocking:
            release_team()  # others compute now
        while True:
            try:
                command = self._inbox.get(block=is_blocking, timeout=self._engine.seconds_until_due)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            is_blocking = False

    def _run_step(self) -> None:
        if not self._engine.wait_for_work():  # without holding the cores: pipelines in threads compute on one core each
            return
        with self._cores.hold(WorkKind.STEP), self._watchdog.time_phase("the engine", "step"):
            stopwatch = Stopwatch()
            events = self._engine.step()
            self.on_step(self._engine.last_batch, stopwatch.elapsed_ms())
        if events:
            self._call_on_loop(self._on_events, events, time.monotonic())
        else:
            time.sleep(0.001)  # no events: give the pipelines' threads a moment

    def _call_on_loop(self, callback: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *arguments)
