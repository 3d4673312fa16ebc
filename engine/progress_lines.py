"""Turns model loading progress into a few lines for a log or terminal: one per phase, more while loading. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable

from engine.job import ModelProgress
from engine.sizes import loading, said

EVERY_SECONDS = 5.0  # between two lines about one model


class ProgressLines:
    """`say` gets each line. `where` is a device, as in "ready on cpu"."""

    def __init__(self, say: Callable[[str], None], where: str = "") -> None:
        self._say, self._where = say, f" on {where}" if where else ""
        self._stage: tuple[str | None, str] = (None, "")
        self._began, self._last = 0.0, 0.0
        self._line = ""

    def hear(self, one: ModelProgress, now: float) -> None:
        """Take the newest progress, which may repeat; `now` is in seconds of any clock."""
        stage, before = (one.model, one.phase), self._stage
        if one.model is None or (stage == before and (one.phase != "load" or now - self._last < EVERY_SECONDS)):
            return
        self._stage = stage
        if one.phase == "load" and (stage != before or one.done):
            self._began = self._began if stage == before else now
            whole = f", {said(one.size)}" if one.size else ""
            self._put(f"loading {one.model}{whole}" if stage != before else loading(*_of(one)), now)
        elif one.phase == "measure":
            self._put(f"measuring {one.model}", now)
        elif one.phase == "ready" and before[0] == one.model:
            self._put(f"{one.model} is ready{self._where} after {math.ceil(max(1.0, now - self._began))} s", now)

    def _put(self, line: str, now: float) -> None:
        self._last = now
        if line != self._line:
            self._say(line)
        self._line = line


def _of(one: ModelProgress) -> tuple[str, float, int]:
    return one.model or "", one.done, one.size
