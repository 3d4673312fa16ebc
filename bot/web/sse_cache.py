"""Caches of encoded events and jobs: each is encoded once, however many pages are open."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from cachetools import LRUCache

from bot.domain.dto import JobView, Member
from bot.domain.events import JobProgress, JobSteered, ModelLoading, QueueMoved
from bot.web import recipe_serializer, serializers

LiveEvent = QueueMoved | ModelLoading | JobProgress | JobSteered
MAX_JOBS = 256  # jobs


class EventCache:
    """The last encoded event of each job. The feed gives the same object to all pages that keep up."""

    def __init__(self) -> None:
        self._last: LRUCache[str, tuple[LiveEvent, bytes]] = LRUCache(MAX_JOBS)

    def encode(self, job_event: LiveEvent) -> bytes:
        """Return the event in its wire format."""
        last = self._last.get(job_event.job)
        if last is None or last[0] is not job_event:
            name, value = serialize_event(job_event)
            last = self._last[job_event.job] = job_event, format_event(name, msgspec.json.encode(value))
        return last[1]


class JobCache:
    """The last JSON of each job, as its author, a moderator and everybody else see it."""

    def __init__(self) -> None:
        self._last: LRUCache[str, tuple[JobView, dict[tuple[bool, bool], bytes]]] = LRUCache(MAX_JOBS)

    def encode(self, view: JobView, reader: Member) -> bytes:
        """Return `serializers.serialize_job` as JSON."""
        last = self._last.get(view.id)
        if last is None or last[0] != view:
            last = self._last[view.id] = view, {}
        role = (view.member_id == reader.id, reader.is_moderator)
        if role not in last[1]:
            last[1][role] = msgspec.json.encode(serializers.serialize_job(view, reader))
        return last[1][role]

    def encode_list(self, views: Iterable[JobView], reader: Member) -> bytes:
        """Return `{"jobs": […]}`."""
        return b'{"jobs":[' + b",".join(self.encode(view, reader) for view in views) + b"]}"


def format_event(name: str, data: bytes, event_id: str = "") -> bytes:
    """Return an event in its wire format (HTML, 9.2.6: the event stream's format). `data` is JSON: no line ends."""
    id_line = f"id: {event_id}\r\n" if event_id else ""
    return f"{id_line}event: {name}\r\ndata: ".encode() + data + b"\r\n\r\n"


def serialize_event(job_event: LiveEvent) -> tuple[str, dict[str, Any]]:
    """Return the event's name and its value for JSON."""
    if isinstance(job_event, JobProgress):
        return "frame", serializers.serialize_frame(job_event)
    if isinstance(job_event, ModelLoading):
        return "loading", serializers.serialize_loading(job_event)
    if isinstance(job_event, JobSteered):
        return "steered", recipe_serializer.serialize_steered(job_event)
    payload = {"jobs_ahead": job_event.jobs_ahead, "eta": job_event.eta, "startup_notice": job_event.startup_notice}
    return "queued", {"id": job_event.job, "state": "queued", **payload}
