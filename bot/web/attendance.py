"""Requests of other programs' APIs, whose clients wait for their pictures (`bot.services.jobs.attended_request`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from bot.domain.dto import AcceptedJob
from bot.services.jobs.attended_request import AttendedRequest, PictureRequest
from bot.web.middleware import member_of
from bot.web.sse import SERVICES, SHUTDOWN
from bot.web.submission import destination_of


@asynccontextmanager
async def admit_attended(
    request: web.Request, picture_request: PictureRequest, *, with_previews: bool
) -> AsyncGenerator[AttendedRequest]:
    """Admit a visitor's request for the length of the context, and cancel its jobs if the context ends before them.

    Jobs of a server that shuts down go on. Raises `UserError` for a refused request.
    """
    admit = request.app[SERVICES].attended_requests.admit
    context = admit(picture_request, member_of(request), destination_of(request), with_previews=with_previews)
    del picture_request  # its pictures need no memory while the jobs run
    async with context as attended:
        try:
            yield attended
        finally:
            _keep_jobs_at_shutdown(request, attended)


@asynccontextmanager
async def attend_accepted(
    request: web.Request, accepted_jobs: Sequence[AcceptedJob], *, with_previews: bool
) -> AsyncGenerator[AttendedRequest]:
    """Attend to a visitor's jobs that another service has admitted, as `admit_attended` does."""
    attend = request.app[SERVICES].attended_requests.attend
    async with attend(accepted_jobs, member_of(request), with_previews=with_previews) as attended:
        try:
            yield attended
        finally:
            _keep_jobs_at_shutdown(request, attended)


def _keep_jobs_at_shutdown(request: web.Request, attended: AttendedRequest) -> None:
    if request.app[SHUTDOWN].is_set():
        attended.keep_jobs()
