"""Loading progress and sizes of models, as workers last reported them. Such a worker cannot take jobs yet."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TypeVar

import msgspec
from nats.aio.msg import Msg

from engine.bus import subjects
from engine.bus.refusals import Refusals
from engine.job import Malformed, ModelProgress, Name, decode

SILENT = 10.0  # seconds: a report expires; its worker is done or gone
K = TypeVar("K")
V = TypeVar("V")
MOST = 256  # entries: (worker, pool) pairs, and as many models


class ProgressBoard:
    """Bounded, since any client with the token may send reports."""

    def __init__(self, refused: Refusals) -> None:
        self._refused = refused
        self._heard: dict[tuple[str, str], tuple[ModelProgress, float]] = {}
        self._sizes: dict[str, int] = {}

    async def on_message(self, msg: Msg) -> None:
        """Store one worker's report in one of its pools."""
        worker, pool = subjects.progressing(msg.subject)
        try:
            msgspec.convert((worker, pool), tuple[Name, Name])
            progress = decode(msg.data, ModelProgress)
        except (Malformed, msgspec.ValidationError) as error:
            self._refused.note(f"the progress of worker {worker[:64]}", str(error))
            return
        _put(self._heard, (worker, pool), (progress, asyncio.get_running_loop().time()))
        if progress.model and progress.size:
            _put(self._sizes, progress.model, progress.size)

    def size(self, model: str) -> int:
        """Return a model's size in bytes, as last reported; 0: unknown."""
        return self._sizes.get(model, 0)

    def newest(self, pool: str | None, *, but: Collection[str] = ()) -> ModelProgress | None:
        """Return the newest report in one pool or in all, without the workers `but`."""
        found = [one for (worker, at), one in self._now() if worker not in but and pool in (None, at)]
        return found[-1] if found else None

    def of(self, worker: str) -> ModelProgress | None:
        """Return one worker's current or just finished progress."""
        return next((one for (name, _), one in self._now() if name == worker), None)

    def _now(self) -> list[tuple[tuple[str, str], ModelProgress]]:
        least = asyncio.get_running_loop().time() - SILENT
        return [(key, one) for key, (one, at) in self._heard.items() if at >= least]


def _put(into: dict[K, V], key: K, value: V) -> None:
    """Insert as the newest; drop the oldest where there are too many."""
    into.pop(key, None)
    into[key] = value
    if len(into) > MOST:
        del into[next(iter(into))]
