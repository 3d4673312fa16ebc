"""The requests for pictures that clients wait for, by caller: what progress tells of, and interrupt cancels.

Jobs that a caller asked for in another way are not among them.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

from bot.domain.events import Feed
from bot.jobs.attended_requests import AttendedRequest


@dataclass
class OpenRequest:
    """A request in progress. `kind`: of its script, as AUTOMATIC1111 names it; `started`: seconds since 1970.

    `task`: what the caller calls it (`force_task_id`), if anything.
    """

    attended_request: AttendedRequest
    kind: str
    started: float
    task: str | None = None
    watched_jobs: set[str] = field(default_factory=set[str])

    @property
    def all_jobs(self) -> tuple[str, ...]:
        """Its jobs, in order."""
        return tuple(accepted.job for accepted in self.attended_request.jobs)

    @property
    def open_jobs(self) -> tuple[str, ...]:
        """Those that have not ended, in order."""
        return tuple(job for job in self.all_jobs if job in self.attended_request.open_jobs)


class OpenRequests:
    """By caller, the oldest first."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._by_member: dict[str, list[OpenRequest]] = {}

    def list_of(self, member: str) -> tuple[OpenRequest, ...]:
        """Return a caller's requests."""
        return tuple(self._by_member.get(member, ()))

    @contextmanager
    def note(self, member: str, request: OpenRequest) -> Generator[None]:
        """List the request while the body runs."""
        requests = self._by_member.setdefault(member, [])
        requests.append(request)
        try:
            yield
        finally:
            requests.remove(request)
            if not requests:
                del self._by_member[member]
            for job in request.watched_jobs:
                self._feed.unwatch(job)

    def watch(self, request: OpenRequest, job: str) -> None:
        """Have previews of a job rendered until its request ends: somebody asks for them."""
        if job not in request.watched_jobs:
            request.watched_jobs.add(job)
            self._feed.watch(job)


OPEN_REQUESTS = web.AppKey("open_requests", OpenRequests)
