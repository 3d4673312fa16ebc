"""What workers bring into memory just now, and how large models are: what each said last, for as long as it goes on.

Knows messages and time; nothing of jobs. Nothing of it counts as a worker that can take a job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TypeVar

import msgspec
from nats.aio.msg import Msg

from engine.bus import subjects
from engine.bus.refusals import Refusals
from engine.job import Malformed, ModelProgress, Name, decode

SILENT = 10.0  # seconds: who said nothing for so long is done, or gone
K = TypeVar("K")
V = TypeVar("V")
MOST = 256  # workers in their pools, and as many models


class ProgressBoard:
    """Bounded: whoever has the token may say anything."""

    def __init__(self, refused: Refusals) -> None:
        self._refused = refused
        self._heard: dict[tuple[str, str], tuple[ModelProgress, float]] = {}
        self._sizes: dict[str, int] = {}

    async def on_message(self, msg: Msg) -> None:
        """What one worker says in one of its pools."""
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
        """Bytes that a model takes, as a worker last said; 0: unknown."""
        return self._sizes.get(model, 0)

    def newest(self, pool: str | None, *, but: Collection[str] = ()) -> ModelProgress | None:
        """What the worker does that spoke last, of one pool or of all; leaves out the workers `but`."""
        found = [one for (worker, at), one in self._now() if worker not in but and pool in (None, at)]
        return found[-1] if found else None

    def of(self, worker: str) -> ModelProgress | None:
        """What one worker brings into memory, or has just brought."""
        return next((one for (name, _), one in self._now() if name == worker), None)

    def _now(self) -> list[tuple[tuple[str, str], ModelProgress]]:
        least = asyncio.get_running_loop().time() - SILENT
        return [(key, one) for key, (one, at) in self._heard.items() if at >= least]


def _put(into: dict[K, V], key: K, value: V) -> None:
    """As the newest; the oldest goes where there are too many."""
    into.pop(key, None)
    into[key] = value
    if len(into) > MOST:
        del into[next(iter(into))]
