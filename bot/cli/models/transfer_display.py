"""Shows a download: bytes, speed and time left on one line; where there is no terminal, a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from engine.process.load_progress import format_loaded_part, format_size

LINE_SECONDS = 10.0  # between two lines where there is no terminal
SPEED_SECONDS = 30.0  # over which the terminal's speed is the mean


class TransferDisplay:
    """A context manager around one download or check. `size`, `present`: bytes, and those that are there already.

    Silent with `quiet`, lines on `console` without a terminal.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        size: int,
        present: int = 0,
        *,
        quiet: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._title = title
        self._size = size
        self._quiet = quiet
        self._now = now
        self._present = self._done = present
        self._started = self._last_line = now()
        self._stage = ""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            speed_estimate_period=SPEED_SECONDS,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=size, completed=present)

    def __enter__(self) -> TransferDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, stage: Literal["download", "check"], byte_count: int) -> None:
        """Take bytes that arrived; a check moves nothing, as it follows each file."""
        if stage != self._stage:
            self._stage = stage
            self._progress.update(
                self._task, description=f"{self._title}, checking" if stage == "check" else self._title
            )
        if stage == "download":
            self.advance(byte_count)

    def advance(self, byte_count: int) -> None:
        """Count bytes; negative where a file starts anew."""
        self._done += byte_count
        self._progress.advance(self._task, byte_count)
        if not self._quiet and not self._console.is_terminal and self._now() - self._last_line >= LINE_SECONDS:
            self._last_line = self._now()
            self._console.print(self.format_line(), markup=False, highlight=False, soft_wrap=True)

    def format_line(self) -> str:
        """Return "flux-schnell: 1.2 of 33.7 GB, 84 MB a second, 6 min left"."""
        seconds = max(1e-3, self._now() - self._started)
        speed = (self._done - self._present) / seconds
        line = f"{self._title}: {format_loaded_part(self._done / max(1, self._size), self._size)}"
        if speed <= 0:
            return line
        return f"{line}, {format_size(int(speed))} a second, {_format_left((self._size - self._done) / speed)} left"


def _format_left(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(0, round(seconds))} s"


def format_file_count(count: int) -> str:
    """Return "1 file" or "13 files"."""
    return f"{count} file{'' if count == 1 else 's'}"
