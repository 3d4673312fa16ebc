"""An admitted request of OpenAI's API: its previews, its usage, and the refusal if no pictures come."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, get_args

import msgspec
from aiohttp import web
from aiohttp_sse import EventSourceResponse

from bot.apis.openai import answers
from bot.apis.openai.bodies import DrawBody
from bot.apis.openai.picture_requests import build_request, name_flag
from bot.domain.concurrency import race
from bot.domain.errors import UserError
from bot.jobs.attended_requests import AttendedRequest, FeedClosed, PicturesMissing, Preview
from bot.jobs.init_images import InitImages
from bot.store import DatabaseUnavailable
from bot.web.attendance import admit_attended
from bot.web.middleware import STATUS_SENTENCES, Refusal
from bot.web.request_body import idempotency_key_of
from bot.web.sse import (
    SERVICES,
    SHUTDOWN,
    format_event,
    open_stream,
    wait_for_disconnect,
    wait_for_sign_out,
    write_event,
)

Event = tuple[str, dict[str, Any]]  # its name and its value for JSON; bytes become base64
DrawingError = PicturesMissing | FeedClosed | UserError | DatabaseUnavailable  # why a request gets no pictures
DRAWING_ERRORS = get_args(DrawingError)  # a job may also be deleted or held while its client waits
LAST_EVENT_SECONDS = 1.0  # for the last event of a stream when the server closes
RESTARTING = "Darkroom is restarting: the pictures will be in its chatroom."


@dataclass(frozen=True)
class Drawing:
    """An admitted request that is being answered, without the pictures that came with it: they are no longer needed.

    `picture_count`: of those; `kind`: the beginning of its events' names.
    """

    http: web.Request
    body: DrawBody
    attended_request: AttendedRequest
    picture_count: int = 0
    kind: answers.EventKind = "image_generation"

    async def follow_previews(self) -> AsyncIterator[tuple[int, Preview]]:
        """Yield as many previews of each picture as the body asks for, the first at once, each with its number."""
        max_previews = self.body.partial_images or 0
        sent_counts = Counter[int]()
        if not max_previews:
            return
        async for preview in self.attended_request.follow_previews():
            sent_count = sent_counts[preview.picture]
            if sent_count < max_previews and preview.step * max_previews >= sent_count * preview.total_steps:
                sent_counts[preview.picture] += 1
                yield sent_count, preview

    def count_usage(self, parts: int = 1) -> answers.OpenAIUsage:
        """Return one of equal parts of what the request took, once its jobs have ended."""
        words = len(self.body.prompt.split())
        return answers.count_usage(words, self.picture_count, self.attended_request.views, parts)


async def admit_drawing(
    stack: AsyncExitStack, request: web.Request, body: DrawBody, images: InitImages | None = None
) -> AttendedRequest:
    """Admit the request until the stack ends. Raises `UserError`, with its field if it is about one."""
    picture_request = build_request(body, request.app[SERVICES].catalog, images, idempotency_key_of(request))
    with_previews = bool(body.stream and body.partial_images)
    try:
        return await stack.enter_async_context(admit_attended(request, picture_request, with_previews=with_previews))
    except UserError as error:
        raise name_flag(error, has_images=images is not None) from error


def refusal_of(error: DrawingError) -> Refusal:
    """Return what a client is told that gets no pictures."""
    if isinstance(error, FeedClosed):
        return Refusal(503, RESTARTING, error)
    if isinstance(error, DatabaseUnavailable):
        return Refusal(503, STATUS_SENTENCES[503], error)
    if isinstance(error, UserError):
        return Refusal(error.status, error.sentence, error)
    return Refusal(400 if error.is_held or error.state == "cancelled" else 500, error.sentence, error)


async def send_events(http: web.Request, events: AsyncIterator[Event]) -> web.StreamResponse:
    """Send events as they come, until they end or the client goes."""
    async with open_stream(http) as stream:
        await race(_write_events(http, stream, events), _wait_for_end(http), wait_for_sign_out(http))
    return stream


async def _wait_for_end(http: web.Request) -> None:
    """Return when the client has gone, or soon after the server closes: the stream tells of the restart first."""
    await wait_for_disconnect(http)
    if http.app[SHUTDOWN].is_set():
        await asyncio.sleep(LAST_EVENT_SECONDS)


async def _write_events(http: web.Request, stream: EventSourceResponse, events: AsyncIterator[Event]) -> None:
    async for name, payload in events:
        await write_event(http, stream, format_event(name, msgspec.json.encode(payload)))
