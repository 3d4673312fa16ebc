"""Requests of other programs' APIs, whose clients wait for their pictures (`bot.jobs.attended_requests`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from bot.domain.dto import AcceptedJob
from bot.jobs.attended_requests import AttendedRequest, AttendedRequests, DrawnPicture, PictureRequest
from bot.web.media import wait_while_connected
from bot.web.middleware import is_signed_out, member_of, signed_out_error
from bot.web.request_body import destination_of
from bot.web.sse import SERVICES, SHUTDOWN


@asynccontextmanager
async def admit_attended(
    request: web.Request, picture_request: PictureRequest, *, with_previews: bool
) -> AsyncGenerator[AttendedRequest]:
    """Admit a visitor's request for the length of the context, and cancel its jobs if the context ends before them.

    Jobs of a server that shuts down go on; who waits for them gets `FeedClosed`. Raises `UserError` for a refused
    request.
    """
    admit = request.app[SERVICES].get(AttendedRequests).admit
    context = admit(picture_request, member_of(request), destination_of(request), with_previews=with_previews)
    del picture_request  # its pictures need no memory while the jobs run
    async with context as attended_request, _follow_until_shutdown(request, attended_request):
        yield attended_request


@asynccontextmanager
async def attend_accepted(
    request: web.Request, accepted_jobs: Sequence[AcceptedJob], *, with_previews: bool
) -> AsyncGenerator[AttendedRequest]:
    """Attend to a visitor's jobs that another service has admitted, as `admit_attended` does."""
    attend = request.app[SERVICES].get(AttendedRequests).attend
    context = attend(accepted_jobs, member_of(request), with_previews=with_previews)
    async with context as attended_request, _follow_until_shutdown(request, attended_request):
        yield attended_request


@asynccontextmanager
async def _follow_until_shutdown(request: web.Request, attended_request: AttendedRequest) -> AsyncGenerator[None]:
    """Stop following the jobs if the server shuts down: its clients still get an answer, and their jobs go on."""

    async def stop_at_shutdown() -> None:
        await request.app[SHUTDOWN].wait()
        attended_request.stop_following()

    task = asyncio.create_task(stop_at_shutdown())
    try:
        yield
    finally:
        task.cancel()
        if request.app[SHUTDOWN].is_set():
            attended_request.keep_jobs()


async def read_pictures(
    request: web.Request, attended_request: AttendedRequest, *, is_partial: bool = False
) -> list[DrawnPicture]:
    """Return the pictures once they are finished, as `AttendedRequest.read_pictures` does, while the client waits.

    Raises `UserError` if the client's key or session has ended meanwhile.
    """
    pictures = await wait_while_connected(request, attended_request.read_pictures(is_partial=is_partial))
    if await is_signed_out(request):
        raise signed_out_error(request)
    return pictures
