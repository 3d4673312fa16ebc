"""`/sdapi/v1/progress`, `/interrupt` and `/skip`: the caller's own requests, and nobody else's.

The requests for pictures that clients wait for, by caller: what progress tells of, and interrupt cancels.

Jobs that a caller asked for in another way are not among them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from bot.apis.a1111.result_fields import format_timestamp
from bot.domain.dto import JobView
from bot.domain.errors import UserError
from bot.domain.events import Feed, JobProgress
from bot.jobs.attended_requests import AttendedRequest
from bot.pictures import grid
from bot.web.middleware import member_of
from bot.web.request_body import encode_base64
from bot.web.routes import answer_json
from bot.web.sse import SERVICES

LEAST_PROGRESS = 0.01  # of a request that has not begun: 0 means to clients that there is none
MIN_CELL = 64  # pixels of a preview in a grid


class WebuiProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the caller's requests are, 0 to 1. `eta_relative`: seconds until the current job is done."""

    progress: float = 0.0
    eta_relative: float = 0.0
    state: dict[str, Any]
    current_image: str | None = None
    textinfo: str | None = None
    current_task: str | None = None


async def get_progress(request: web.Request) -> web.Response:
    """Return how far the caller's requests are, with the newest preview unless `skip_current_image` is true."""
    requests = request.app[OPEN_REQUESTS].list_of(member_of(request).id)
    current = next((each for each in requests if each.open_jobs), None)
    if current is None:
        return answer_json(WebuiProgress(state=_serialize_state("", 0, 0, None, 0.0)))
    job = current.open_jobs[0]
    view = await request.app[SERVICES].job_views.load_view(job)
    skips_image = request.query.get("skip_current_image", "").lower() in ("true", "1")
    job_count = sum(len(each.all_jobs) for each in requests)
    ended_count = job_count - sum(len(each.open_jobs) for each in requests)
    share = (ended_count + view.step / max(1, view.total_steps)) / job_count
    progress = WebuiProgress(
        progress=min(1.0, max(LEAST_PROGRESS, share)),
        eta_relative=view.eta or 0.0,
        state=_serialize_state(f"scripts_{current.kind}", job_count, ended_count, view, current.started),
        current_image=None if skips_image else await _read_preview(request, current, job),
        textinfo=view.wait_reason or view.startup_notice or None,
        current_task=current.task,
    )
    return answer_json(progress)


def _serialize_state(
    kind: str, job_count: int, ended_count: int, view: JobView | None, started: float
) -> dict[str, Any]:
    return {
        "skipped": False,
        "interrupted": view is not None and view.is_cancelling,
        "stopping_generation": view is not None and view.is_cancelling,
        "job": kind,
        "job_count": job_count,
        "job_timestamp": format_timestamp(started) if view else "0",
        "job_no": ended_count,
        "sampling_step": view.step if view else 0,
        "sampling_steps": view.total_steps if view else 0,
    }


async def _read_preview(request: web.Request, open_request: OpenRequest, job: str) -> str | None:
    """Return the newest previews of a job in base64, several as a grid. Who asks has them rendered from now on."""
    request.app[OPEN_REQUESTS].watch(open_request, job)
    event = request.app[SERVICES].feed.find_latest(job)
    if not isinstance(event, JobProgress) or not event.frames:
        return None
    frames = [jpeg for _, jpeg in sorted(event.frames.items())][:4]
    if len(frames) == 1:
        return encode_base64(frames[0])
    return encode_base64(await asyncio.to_thread(grid.compose, frames, MIN_CELL, image_format="JPEG"))


async def interrupt(request: web.Request) -> web.Response:
    """Cancel the jobs of the caller's open requests."""
    for each in request.app[OPEN_REQUESTS].list_of(member_of(request).id):
        for job in each.open_jobs:
            await _cancel(request, job)
    return answer_json({})


async def skip(request: web.Request) -> web.Response:
    """Cancel the job that is drawn now, of the caller's oldest request; the others of the request go on."""
    requests = request.app[OPEN_REQUESTS].list_of(member_of(request).id)
    if job := next((each.open_jobs[0] for each in requests if each.open_jobs), None):
        await _cancel(request, job)
    return answer_json(None)


async def _cancel(request: web.Request, job: str) -> None:
    with contextlib.suppress(UserError):  # it ended meanwhile
        await request.app[SERVICES].job_control.cancel(job, member_of(request))


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
