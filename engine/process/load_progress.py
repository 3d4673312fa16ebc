"""Model loading progress and sizes as text. Pure.

`ProgressLines` writes a few lines for a log or terminal: one for each phase, more while a model loads.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from engine.contract import ModelProgress

UNITS = ((10**9, "GB", 1), (10**6, "MB", 0))  # unit, name, decimal digits
LINE_INTERVAL_SECONDS = 5.0  # between two lines about one model


class ProgressLines:
    """Calls `write_line` with each line. `device`: as in "ready on cpu"."""

    def __init__(self, write_line: Callable[[str], None], device: str = "") -> None:
        self._write_line = write_line
        self._device_suffix = f" on {device}" if device else ""
        self._last_stage: tuple[str | None, str] = (None, "")
        self._first_seen_at = 0.0
        self._last_line_at = 0.0
        self._last_line = ""

    def update(self, progress: ModelProgress, now: float) -> None:
        """Take the newest progress, which may repeat; `now` is in seconds of any clock."""
        stage = (progress.model, progress.phase)
        last_stage = self._last_stage
        if progress.model is None or (
            stage == last_stage and (progress.phase != "load" or now - self._last_line_at < LINE_INTERVAL_SECONDS)
        ):
            return
        self._last_stage = stage
        if progress.model != last_stage[0] or (progress.phase == "load" and stage != last_stage):
            self._first_seen_at = now  # a quick load may be over before anybody looks
        if progress.phase == "load" and (stage != last_stage or progress.done):
            size_suffix = f", {format_size(progress.size)}" if progress.size else ""
            first_line = f"loading {progress.model}{size_suffix}"
            self._write(first_line if stage != last_stage else format_loading(*_progress_fields(progress)), now)
        elif progress.phase == "measure":
            self._write(f"measuring {progress.model}", now)
        elif progress.phase == "ready" and last_stage[0] == progress.model:
            seconds = math.ceil(max(1.0, now - self._first_seen_at))
            self._write(f"{progress.model} is ready{self._device_suffix} after {seconds} s", now)

    def _write(self, line: str, now: float) -> None:
        self._last_line_at = now
        if line != self._last_line:
            self._write_line(line)
        self._last_line = line


def _progress_fields(progress: ModelProgress) -> tuple[str, float, int]:
    return progress.model or "", progress.done, progress.size


def format_loading(model: str, share: float, size: int = 0) -> str:
    """Return "loading sd15, 1.2 of 2.0 GB"; if the size is unknown, "loading sd15, 40 %"."""
    return f"loading {model}, {format_loaded_part(share, size) if size else f'{loaded_percent(share)} %'}"


def format_loaded_part(share: float, size: int) -> str:
    """Return `1.2 of 2.0 GB` or `35 of 140 MB`; the full size only at a `share` of 1."""
    unit, name, digits = next((unit_row for unit_row in UNITS if size >= unit_row[0]), (1000, "kB", 0))
    step = unit / 10**digits
    total_units = max(1, round(size / step))
    loaded_units = total_units if share >= 1.0 else min(total_units - 1, int(share * size / step))
    return f"{loaded_units / 10**digits:.{digits}f} of {total_units / 10**digits:.{digits}f} {name}"


def loaded_percent(share: float) -> int:
    """Return whole percent, 100 only when it is done."""
    return max(0, min(100, round(share * 1000) * 100 // 1000))


def format_size(size: int) -> str:
    """Return a size as `12 GB`, `1.4 GB`, `350 MB`."""
    for unit, name, _ in UNITS:
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{max(1, size // 1000)} kB"
