"""Turns model loading progress into a few lines for a log or terminal: one per phase, more while loading. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable

from engine.job import ModelProgress
from engine.sizes import format_loading, format_size

LINE_INTERVAL_SECONDS = 5.0  # between two lines about one model


class ProgressLines:
    """`say` gets each line. `where` is a device, as in "ready on cpu"."""

    def __init__(self, write_line: Callable[[str], None], device: str = "") -> None:
        self._write_line, self._device_suffix = write_line, f" on {device}" if device else ""
        self._last_stage: tuple[str | None, str] = (None, "")
        self._load_started, self._last_line_at = 0.0, 0.0
        self._last_line = ""

    def update(self, progress: ModelProgress, now: float) -> None:
        """Take the newest progress, which may repeat; `now` is in seconds of any clock."""
        stage, last_stage = (progress.model, progress.phase), self._last_stage
        if progress.model is None or (
            stage == last_stage and (progress.phase != "load" or now - self._last_line_at < LINE_INTERVAL_SECONDS)
        ):
            return
        self._last_stage = stage
        if progress.phase == "load" and (stage != last_stage or progress.done):
            self._load_started = self._load_started if stage == last_stage else now
            size_suffix = f", {format_size(progress.size)}" if progress.size else ""
            self._write(
                f"loading {progress.model}{size_suffix}"
                if stage != last_stage
                else format_loading(*_progress_fields(progress)),
                now,
            )
        elif progress.phase == "measure":
            self._write(f"measuring {progress.model}", now)
        elif progress.phase == "ready" and last_stage[0] == progress.model:
            self._write(
                f"{progress.model} is ready{self._device_suffix} after {math.ceil(max(1.0, now - self._load_started))} s",
                now,
            )

    def _write(self, line: str, now: float) -> None:
        self._last_line_at = now
        if line != self._last_line:
            self._write_line(line)
        self._last_line = line


def _progress_fields(progress: ModelProgress) -> tuple[str, float, int]:
    return progress.model or "", progress.done, progress.size
