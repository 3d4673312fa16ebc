"""The loading progress and sizes of models that workers reported last. A worker that loads one cannot take jobs yet."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TypeVar

import msgspec
from nats.aio.msg import Msg

from engine.bus import subjects
from engine.bus.rejections import RejectionLog
from engine.contract import MalformedMessage, ModelProgress, Name, decode

EXPIRY_SECONDS = 10.0  # seconds: a report expires; its worker is done or gone
K = TypeVar("K")
V = TypeVar("V")
MAX_ENTRIES = 256  # entries: (worker, pool) pairs, and as many models


class ModelProgressRegistry:
    """Bounded, since any client with the token may send reports."""

    def __init__(self, rejections: RejectionLog) -> None:
        self._rejections = rejections
        self._reports: dict[tuple[str, str], tuple[ModelProgress, float]] = {}
        self._sizes: dict[str, int] = {}

    async def on_message(self, msg: Msg) -> None:
        """Store one worker's report in one of its pools."""
        worker, pool = subjects.parse_progress_subject(msg.subject)
        try:
            msgspec.convert((worker, pool), tuple[Name, Name])
            progress = decode(msg.data, ModelProgress)
        except (MalformedMessage, msgspec.ValidationError) as error:
            self._rejections.record(f"the progress of worker {worker[:64]}", str(error))
            return
        _put_newest(self._reports, (worker, pool), (progress, asyncio.get_running_loop().time()))
        if progress.model and progress.size:
            _put_newest(self._sizes, progress.model, progress.size)

    def get_model_size(self, model: str) -> int:
        """Return a model's size in bytes, as last reported; 0: unknown."""
        return self._sizes.get(model, 0)

    def get_newest(self, pool: str | None, *, excluded: Collection[str] = ()) -> ModelProgress | None:
        """Return the newest report in one pool or in all, without the workers `excluded`."""
        reports = [
            report
            for (worker, report_pool), report in self._current_reports()
            if worker not in excluded and pool in (None, report_pool)
        ]
        return reports[-1] if reports else None

    def get_progress(self, worker: str) -> ModelProgress | None:
        """Return one worker's current or just finished progress."""
        return next((report for (name, _), report in self._current_reports() if name == worker), None)

    def _current_reports(self) -> list[tuple[tuple[str, str], ModelProgress]]:
        earliest = asyncio.get_running_loop().time() - EXPIRY_SECONDS
        return [(key, report) for key, (report, reported_at) in self._reports.items() if reported_at >= earliest]


def _put_newest(entries: dict[K, V], key: K, value: V) -> None:
    """Insert as the newest; drop the oldest where there are too many."""
    entries.pop(key, None)
    entries[key] = value
    if len(entries) > MAX_ENTRIES:
        del entries[next(iter(entries))]
