"""A cache of encoded events: each is encoded once, however many pages are open."""

from __future__ import annotations

import json
from typing import Any

from cachetools import LRUCache

from bot.domain.events import JobProgress, ModelLoading, QueueMoved
from bot.web import serializers

LiveEvent = QueueMoved | ModelLoading | JobProgress
MAX_JOBS = 256  # jobs


class EventCache:
    """The last encoded event of each job. The feed gives the same object to all pages that keep up."""

    def __init__(self) -> None:
        self._last: LRUCache[str, tuple[LiveEvent, bytes]] = LRUCache(MAX_JOBS)

    def encode(self, job_event: LiveEvent) -> bytes:
        """Return the event in its wire format (HTML, 9.2.6: the event stream's format). JSON has no line ends."""
        last = self._last.get(job_event.job)
        if last is None or last[0] is not job_event:
            name, value = serialize_event(job_event)
            last = self._last[job_event.job] = job_event, f"event: {name}\r\ndata: {json.dumps(value)}\r\n\r\n".encode()
        return last[1]


def serialize_event(job_event: LiveEvent) -> tuple[str, dict[str, Any]]:
    """Return the event's name and its value for JSON."""
    if isinstance(job_event, JobProgress):
        return "frame", serializers.serialize_frame(job_event)
    if isinstance(job_event, ModelLoading):
        return "loading", serializers.serialize_loading(job_event)
    payload = {"jobs_ahead": job_event.jobs_ahead, "eta": job_event.eta, "startup_notice": job_event.startup_notice}
    return "queued", {"id": job_event.job, "state": "queued", **payload}
