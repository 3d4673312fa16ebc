"""Pulls each plug and puts it back: signals, a deleted store, a locked or full disk, a broken connection, lies.

Each target has one plug at a time; plugs on different targets overlap. Knows the installation; judges nothing.
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

from chaos.database import SQLite
from chaos.faults import Plug
from chaos.hostile_client import Liar
from chaos.installation import Installation
from chaos.observer import Observer
from chaos.program import PATIENCE, Program

RESTART_TIMEOUT = 90.0  # seconds until a restarted process must work again
AT_WORK_OF_TEN = 7  # of ten plugs that end or stop a process, so many wait until it works; the others may hit its start
LONGEST_WAIT = 40.0


class Pulling:
    """`pull_all`, then `heal`."""

    def __init__(self, site: Installation, observer: Observer, liar: Liar) -> None:
        self._site, self._observer, self._liar = site, observer, liar
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.pulled: list[Plug] = []
        self._actions: dict[str, Callable[[Plug], Awaitable[str | None]]] = {
            "kill": self._kill, "lose": self._lose_store, "stop": self._stop, "term": self._term, "lock": self._lock,
            "fill": self._fill, "cut": self._break_line, "hold": self._break_line, "drop": self._break_line,
            "slow": self._break_line, "repeat": self._repeat, "lie": self._lie,
        }  # fmt: skip

    async def pull_all(self, plugs: Iterable[Plug]) -> None:
        """Pulls each plug at its time. Returns when the last one is back."""
        async with asyncio.TaskGroup() as group:
            for plug in plugs:
                await asyncio.sleep(plug.after)
                group.create_task(self._pull(plug), name=str(plug))

    async def _pull(self, plug: Plug) -> None:
        async with self._locks[plug.target]:
            if plug.salt % 10 < AT_WORK_OF_TEN and plug.kind.startswith(("kill", "term", "stop")):
                await self._wait_for_work(plug.target)
            self._site.timeline.note("plug", aloud=True, number=plug.number, plug=str(plug))
            self.pulled.append(plug)
            began = time.monotonic()
            note = await self._actions[plug.kind.partition("-")[0]](plug)
            if plug.target == "broker" or plug.kind.startswith(("cut", "hold", "drop", "slow")):
                self._observer.troubled.append((began, time.monotonic() + 1.0, plug.kind))
            self._site.timeline.note("back", number=plug.number, plug=plug.kind, said=note)

    async def _wait_for_work(self, target: str) -> None:
        """Waits, up to a limit, until the bot answers, or the worker has begun a job since its start."""
        end = time.monotonic() + LONGEST_WAIT
        while time.monotonic() < end:
            if target == "bot" and await self._site.answers():
                return
            if target not in ("bot", *self._site.build.names):
                return
            began = self._site.programs[target].began
            if any(one.began > began for _, one in self._observer.held(target)):
                return
            await asyncio.sleep(0.1)

    async def heal(self) -> None:
        """Puts everything back, and waits until it works."""
        for line in self._site.lines.values():
            line.set("pass")
        for disk in self._site.disks.values():
            disk.free()
        for program in self._site.programs.values():
            program.family(signal.SIGCONT)
        await self._site.ready(self._site.build.workers)

    def _note_loss(self, plug: Plug, how: str) -> None:
        if plug.target in self._site.build.names:
            self._observer.lose(plug.target, how)

    async def _kill(self, plug: Plug) -> None:
        self._note_loss(plug, "kill")
        program = self._site.at_work(plug.target)
        program.signal(signal.SIGKILL, back=plug.lasts)
        await self._wait_for_restart(program.starts + 1, program, plug.lasts)

    async def _wait_for_restart(self, starts: int, program: Program, lasts: float) -> None:
        """Waits for the restart, but not until the program is ready: plugs may also hit a start."""
        with suppress(TimeoutError):
            async with asyncio.timeout(lasts + RESTART_TIMEOUT):
                while program.starts < starts:
                    await asyncio.sleep(0.02)

    async def _lose_store(self, plug: Plug) -> str:
        """Deletes the broker's store, under the running server or once it is dead."""
        broker, under = self._site.programs["broker"], plug.salt % 2 == 0
        starts = broker.starts + 1
        if under:
            await asyncio.to_thread(shutil.rmtree, self._site.store, ignore_errors=True)
            await asyncio.sleep(0.5)
        broker.signal(signal.SIGKILL, back=plug.lasts + 0.2)
        await broker.gone()
        await asyncio.to_thread(shutil.rmtree, self._site.store, ignore_errors=True)
        await self._wait_for_restart(starts, broker, plug.lasts)
        return "under the running server" if under else "while it was dead"

    async def _stop(self, plug: Plug) -> None:
        """Stops a process for longer than a lease, and continues it."""
        self._note_loss(plug, "stop")
        program = self._site.at_work(plug.target)
        program.family(signal.SIGSTOP)
        await asyncio.sleep(plug.lasts)
        program.family(signal.SIGCONT)

    async def _term(self, plug: Plug) -> str:
        self._note_loss(plug, "term")
        program, began = self._site.at_work(plug.target), time.monotonic()
        starts = program.starts + 1
        program.signal(signal.SIGTERM, back=plug.lasts)
        if not await program.gone(PATIENCE):
            program.signal(signal.SIGKILL)
            self._site.timeline.note("would not end", aloud=True, who=plug.target)
        seconds = time.monotonic() - began
        await self._wait_for_restart(starts, program, plug.lasts)
        return f"ended after {seconds:.1f} s"

    async def _lock(self, plug: Plug) -> None:
        assert isinstance(self._site.database, SQLite)
        await self._site.database.lock(plug.lasts)

    async def _fill(self, plug: Plug) -> str:
        """Fills a disk. Restarts the broker afterwards, as an operator would: a full disk ends JetStream for good."""
        disk = self._site.disks[plug.target]
        await asyncio.to_thread(disk.fill)
        await asyncio.sleep(plug.lasts)
        disk.free()
        if plug.target == "broker":
            broker = self._site.programs["broker"]
            starts = broker.starts + 1
            broker.signal(signal.SIGTERM)
            await self._wait_for_restart(starts, broker, 0.0)
        return "full"

    async def _break_line(self, plug: Plug) -> None:
        self._note_loss(plug, plug.kind)
        async with self._broken_line(plug):
            await asyncio.sleep(plug.lasts)

    @asynccontextmanager
    async def _broken_line(self, plug: Plug) -> AsyncIterator[None]:
        line = self._site.lines[plug.target]
        mood = plug.kind.partition("-")[0]
        line.set(mood)  # pyright: ignore[reportArgumentType]
        try:
            yield
        finally:
            line.set("pass")

    async def _repeat(self, plug: Plug) -> str:
        return await self._liar.repeat(random.Random(plug.salt))

    async def _lie(self, plug: Plug) -> str:
        return await self._liar.lie(random.Random(plug.salt))
