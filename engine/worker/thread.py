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

from engine.blame import DeviceLost
from engine.cores import Cores, Kind
from engine.engine import Engine, Event
from engine.events import Ran
from engine.watch import Watch
from engine.worker.pulse import Pulse

T = TypeVar("T")
Command = Callable[[], None]


class EngineThread:
    """`on_events` runs on the event loop with the events of a step and the time (monotonic) of its end.

    `on_ran` runs in this thread with the batch of each step and the step's milliseconds. `on_crash` runs on the loop
    when a step raised. The engine's state is then unknown, and the process should end.
    """

    def __init__(
        self, engine: Engine, pulse: Pulse, on_events: Callable[[list[Event], float], None],
        on_crash: Callable[[BaseException], None], cores: Cores | None = None,
    ) -> None:  # fmt: skip
        self._engine, self._pulse, self._cores = engine, pulse, cores or Cores()
        self._on_events, self._on_crash = on_events, on_crash
        self.on_ran: Callable[[Ran | None, float], None] = lambda ran, ms: None  # in this thread
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, args=(torch.get_num_threads(),), name="engine", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def call(self, act: Callable[[Engine], T], kind: Kind | None = None) -> T:
        """Run `act` between two steps and return, or raise, its result.

        An `act` that computes names its `kind` and waits for its turn on the cores; others do not wait.
        """
        future: Future[T] = Future()

        def command() -> None:
            with nullcontext() if kind is None else self._cores.held(kind):
                self._fulfil(future, act)

        self._inbox.put(command)
        return await asyncio.wrap_future(future)

    def _fulfil(self, future: Future[T], act: Callable[[Engine], T]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            with self._pulse.phase("the engine", "encode"):
                future.set_result(act(self._engine))
        except BaseException as error:
            future.set_exception(error)
            if isinstance(error, DeviceLost):
                raise

    async def stop(self, patience: float = 1.0) -> None:
        """Ask the thread to end and wait briefly. It is a daemon, so a stuck one does not block the process's exit."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join, patience)

    def _work(self, cores: int) -> None:
        torch.set_num_threads(cores)  # not another thread's setting: the number changes the last bits of results
        try:
            while self._obey():
                if not self._engine.idle:
                    self._step()
        except BaseException as error:
            self._tell(self._on_crash, error)
        finally:
            self._engine.close()

    def _obey(self) -> bool:
        """Run all queued calls; wait for one when the engine is idle. Return False to end."""
        wait = self._engine.idle
        while True:
            try:
                command = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            wait = False

    def _step(self) -> None:
        if not self._engine.wait_for_work():  # without holding the cores: pipelines in threads compute on one core each
            return
        with self._cores.held(Kind.STEP), self._pulse.phase("the engine", "step"):
            watch = Watch()
            events = self._engine.step()
            self.on_ran(self._engine.ran, watch.ms())
        if events:
            self._tell(self._on_events, events, time.monotonic())
        else:
            time.sleep(0.001)  # no events: give the pipelines' threads a moment

    def _tell(self, what: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, *arguments)
