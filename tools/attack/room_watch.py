"""Watches the room from outside: descriptors, memory, what its logs hold, and the honest visitor's waiting time."""

from __future__ import annotations

import asyncio
import stat
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tools.attack.honest_visitor import Visit, read_visits
from tools.attack.room import ROOT, Room

SAMPLE_PAUSE = 0.25  # seconds


@dataclass
class RoomWatch:
    """Samples of one room. `stages`: name → when it began and ended, on the monotonic clock."""

    room: Room
    file: Path  # the honest visitor's
    descriptors: int = 0
    limit: int = 0
    stages: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def read_memory(self) -> int:
        """Bytes of the bot's process."""
        return self.room.bot.memory_info().rss

    async def sample(self) -> None:
        while True:
            try:
                self.descriptors = max(self.descriptors, self.room.bot.num_fds())
                self.limit = self.room.bot.rlimit(psutil.RLIMIT_NOFILE)[0]
            except psutil.Error:
                pass
            await asyncio.sleep(SAMPLE_PAUSE)

    @asynccontextmanager
    async def stage(self, name: str) -> AsyncGenerator[None]:
        started_at = time.monotonic()
        try:
            yield
        finally:
            self.stages[name] = (started_at, time.monotonic())

    def list_visits(self, *names: str) -> list[Visit]:
        """The honest visitor's requests that began during these stages."""
        spans = [self.stages[name] for name in names if name in self.stages]
        return [one for one in read_visits(self.file) if any(start <= one.at <= end for start, end in spans)]


@asynccontextmanager
async def watch_room(room: Room, cookie: str) -> AsyncGenerator[RoomWatch]:
    """Watches while the context lasts, with an honest visitor in a process of its own."""
    watch = RoomWatch(room, room.folder / "visits.txt")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tools.attack.honest_visitor", room.url, cookie, str(watch.file), cwd=ROOT
    )
    task = asyncio.create_task(watch.sample())
    try:
        yield watch
    finally:
        task.cancel()
        process.kill()
        await process.wait()


def find_quantile(values: Sequence[float], share: float) -> float | None:
    """The least value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def read_log(folder: Path) -> str:
    """The bot's log, the oldest file first."""
    files = sorted(folder.glob("darkroom.log*"), key=lambda file: file.name, reverse=True)
    return "".join(file.read_text(errors="replace") for file in files)


def find_log_damage(folder: Path, first_line: str, secrets: Sequence[str]) -> list[str]:
    """What is wrong with the log: its beginning lost, a forged line, a secret in it, or readable by others."""
    log = read_log(folder)
    damage = [] if first_line and first_line in log else ["the first line is gone"]
    damage += ["it holds a secret" for secret in secrets if secret in log]
    damage += [f"a forged line: {line[:80]}" for line in log.splitlines() if line.startswith("forged line")]
    damage += [
        f"{file.name} can be read by others"
        for file in folder.glob("darkroom.log*")
        if stat.S_IMODE(file.stat().st_mode) & 0o077
    ]
    return damage
