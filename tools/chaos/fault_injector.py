"""Injects each fault and repairs it: signals, a deleted store, a locked or full disk, a broken connection, lies.

Each target has one fault at a time; faults on different targets overlap. Knows the installation; judges nothing.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress

from tools.chaos.database import SQLite
from tools.chaos.faults import Fault
from tools.chaos.hostile_client import HostileClient
from tools.chaos.installation import Installation
from tools.chaos.observer import Observer
from tools.chaos.program import EXIT_TIMEOUT, Program

RESTART_TIMEOUT = 90.0  # seconds until a restarted process must work again
AT_WORK_OF_TEN = 7  # of ten faults that end or stop a process, so many wait until it works; the rest may hit its start
MAX_WAIT = 40.0


class FaultInjector:
    """Injects faults with `inject_all`, then repairs everything with `restore_all`."""

    def __init__(self, site: Installation, observer: Observer, hostile_client: HostileClient) -> None:
        self._site = site
        self._observer = observer
        self._hostile_client = hostile_client
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.injected: list[Fault] = []
        self._actions: dict[str, Callable[[Fault], Awaitable[str | None]]] = {
            "kill": self._kill,
            "lose": self._lose_store,
            "stop": self._pause_process,
            "term": self._terminate,
            "lock": self._lock_database,
            "fill": self._fill_disk,
            "cut": self._break_connection,
            "hold": self._break_connection,
            "drop": self._break_connection,
            "slow": self._break_connection,
            "repeat": self._repeat_messages,
            "lie": self._send_lie,
        }

    async def inject_all(self, faults: Iterable[Fault]) -> None:
        """Injects each fault at its time. Returns when the last one is over."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(fault.delay)
                group.create_task(self._inject(fault), name=str(fault))

    async def _inject(self, fault: Fault) -> None:
        async with self._locks[fault.target]:
            if fault.salt % 10 < AT_WORK_OF_TEN and fault.kind.startswith(("kill", "term", "stop")):
                await self._wait_for_work(fault.target)
            self._site.timeline.note("fault", is_printed=True, number=fault.number, fault=str(fault))
            self.injected.append(fault)
            started_at = time.monotonic()
            note = await self._actions[fault.kind.partition("-")[0]](fault)
            if fault.target == "broker" or fault.kind.startswith(("cut", "hold", "drop", "slow")):
                self._observer.fault_periods.append((started_at, time.monotonic() + 1.0, fault.kind))
            self._site.timeline.note("fault over", number=fault.number, fault=fault.kind, note=note)

    async def _wait_for_work(self, target: str) -> None:
        """Waits, up to a limit, until the bot answers, or the worker has begun a job since its start."""
        end = time.monotonic() + MAX_WAIT
        while time.monotonic() < end:
            if target == "bot" and await self._site.is_ready():
                return
            if target not in ("bot", *self._site.build.names):
                return
            started_at = self._site.programs[target].started_at
            if any(one.started_at > started_at for _, one in self._observer.list_running(target)):
                return
            await asyncio.sleep(0.1)

    async def restore_all(self) -> None:
        """Puts everything back, and waits until it works."""
        for proxy in self._site.proxies.values():
            proxy.set_mode("pass")
        for disk in self._site.disks.values():
            disk.free_space()
        for program in self._site.programs.values():
            program.signal_tree(signal.SIGCONT)
        await self._site.wait_until_ready(self._site.build.workers)

    def _note_loss(self, fault: Fault, cause: str) -> None:
        if fault.target in self._site.build.names:
            self._observer.record_loss(fault.target, cause)

    async def _kill(self, fault: Fault) -> None:
        self._note_loss(fault, "kill")
        program = self._site.find_working_program(fault.target)
        program.signal(signal.SIGKILL, restart_delay=fault.duration)
        await self._wait_for_restart(program.start_count + 1, program, fault.duration)

    async def _wait_for_restart(self, start_count: int, program: Program, duration: float) -> None:
        """Waits for the restart, but not until the program is ready: faults may also hit a start."""
        with suppress(TimeoutError):
            async with asyncio.timeout(duration + RESTART_TIMEOUT):
                while program.start_count < start_count:
                    await asyncio.sleep(0.02)

    async def _lose_store(self, fault: Fault) -> str:
        """Deletes the broker's store, under the running server or once it is dead."""
        broker = self._site.programs["broker"]
        is_running = fault.salt % 2 == 0
        start_count = broker.start_count + 1
        if is_running:
            await asyncio.to_thread(shutil.rmtree, self._site.store, ignore_errors=True)
            await asyncio.sleep(0.5)
        broker.signal(signal.SIGKILL, restart_delay=fault.duration + 0.2)
        await broker.wait_for_exit()
        await asyncio.to_thread(shutil.rmtree, self._site.store, ignore_errors=True)
        await self._wait_for_restart(start_count, broker, fault.duration)
        return "under the running server" if is_running else "while it was dead"

    async def _pause_process(self, fault: Fault) -> None:
        """Stops a process for longer than a lease, and continues it."""
        self._note_loss(fault, "stop")
        program = self._site.find_working_program(fault.target)
        program.signal_tree(signal.SIGSTOP)
        await asyncio.sleep(fault.duration)
        program.signal_tree(signal.SIGCONT)

    async def _terminate(self, fault: Fault) -> str:
        self._note_loss(fault, "term")
        program = self._site.find_working_program(fault.target)
        started_at = time.monotonic()
        start_count = program.start_count + 1
        program.signal(signal.SIGTERM, restart_delay=fault.duration)
        if not await program.wait_for_exit(EXIT_TIMEOUT):
            program.signal(signal.SIGKILL)
            self._site.timeline.note("would not end", is_printed=True, who=fault.target)
        seconds = time.monotonic() - started_at
        await self._wait_for_restart(start_count, program, fault.duration)
        return f"ended after {seconds:.1f} s"

    async def _lock_database(self, fault: Fault) -> None:
        assert isinstance(self._site.database, SQLite)
        await self._site.database.lock(fault.duration)

    async def _fill_disk(self, fault: Fault) -> str:
        """Fills a disk. Restarts the broker afterwards, as an operator would: a full disk ends JetStream for good."""
        disk = self._site.disks[fault.target]
        await asyncio.to_thread(disk.fill)
        await asyncio.sleep(fault.duration)
        disk.free_space()
        if fault.target == "broker":
            broker = self._site.programs["broker"]
            start_count = broker.start_count + 1
            broker.signal(signal.SIGTERM)
            await self._wait_for_restart(start_count, broker, 0.0)
        return "full"

    async def _break_connection(self, fault: Fault) -> None:
        self._note_loss(fault, fault.kind)
        async with self._open_broken_connection(fault):
            await asyncio.sleep(fault.duration)

    @asynccontextmanager
    async def _open_broken_connection(self, fault: Fault) -> AsyncIterator[None]:
        proxy = self._site.proxies[fault.target]
        mode = fault.kind.partition("-")[0]
        proxy.set_mode(mode)  # pyright: ignore[reportArgumentType]
        try:
            yield
        finally:
            proxy.set_mode("pass")

    async def _repeat_messages(self, fault: Fault) -> str:
        return await self._hostile_client.repeat_messages(random.Random(fault.salt))

    async def _send_lie(self, fault: Fault) -> str:
        return await self._hostile_client.send_lie(random.Random(fault.salt))
