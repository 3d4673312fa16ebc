"""`POST /v1/images/…`: OpenAI's image API over the job service. The answer waits for the pictures, or streams them.

A client that disconnects cancels its jobs, unless its request has an Idempotency-Key (`bot.web.attendance`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from aiohttp_sse import EventSourceResponse

from bot.domain.concurrency import race
from bot.domain.errors import UserError
from bot.services.init_images.request import InitImages
from bot.services.jobs.attended_request import (
    AttendedRequest,
    DrawnPicture,
    FeedClosed,
    PictureRequest,
    PicturesMissing,
)
from bot.web.attendance import admit_attended
from bot.web.media import wait_while_connected
from bot.web.middleware import Refusal
from bot.web.openai_api import answers
from bot.web.openai_api.bodies import (
    DrawBody,
    EditFields,
    GenerationBody,
    JsonEditBody,
    VariationFields,
    decode_fields,
    name_field,
)
from bot.web.openai_api.errors import FieldError, describe_error, shape_error
from bot.web.openai_api.image_references import read_references
from bot.web.openai_api.picture_addresses import sign_address
from bot.web.openai_api.picture_requests import build_request, name_flag
from bot.web.request_body import read_body, read_foreign_form, read_picture_body
from bot.web.sse import SERVICES, open_stream, wait_for_disconnect, wait_for_sign_out, write_event
from bot.web.sse_cache import format_event
from bot.web.submission import idempotency_key_of
from engine.contract import MAX_INIT_IMAGES

T = TypeVar("T", bound=DrawBody)

MAX_FILES: Mapping[str, int] = MappingProxyType({"image": MAX_INIT_IMAGES, "image[]": MAX_INIT_IMAGES, "mask": 1})
RESTARTING = "Darkroom is restarting: the pictures will be in its chatroom."


@dataclass(frozen=True)
class Drawing:
    """A request that is being answered. `kind`: the beginning of its events' names."""

    http: web.Request
    body: DrawBody
    request: PictureRequest
    kind: answers.EventKind = "image_generation"


def routes() -> list[web.RouteDef]:
    return [
        web.post("/v1/images/generations", generate_images),
        web.post("/v1/images/edits", edit_images),
        web.post("/v1/images/variations", vary_image),
    ]


async def generate_images(request: web.Request) -> web.StreamResponse:
    """Draw pictures from a prompt."""
    try:
        body = await read_body(request, GenerationBody)
    except UserError as error:
        raise name_field(error) from error
    async with AsyncExitStack() as stack:
        drawing = Drawing(request, body, _build(request, body, body.prompt))
        return await _answer(drawing, await _admit(stack, drawing))


async def edit_images(request: web.Request) -> web.StreamResponse:
    """Change pictures by a prompt: by words, inside a mask, or with the pictures as a beginning."""
    async with AsyncExitStack() as stack:
        async with _read_edit(request) as (body, images):
            drawing = Drawing(request, body, _build(request, body, body.prompt, images), "image_edit")
            attended = await _admit(stack, drawing)
        return await _answer(drawing, attended)


async def vary_image(request: web.Request) -> web.StreamResponse:
    """Draw pictures that begin with a picture."""
    async with AsyncExitStack() as stack:
        async with _read_form(request, VariationFields) as (body, images):
            drawing = Drawing(request, body, _build(request, body, body.prompt, images))
            attended = await _admit(stack, drawing)
        return await _answer(drawing, attended)


@asynccontextmanager
async def _read_edit(request: web.Request) -> AsyncGenerator[tuple[EditFields, InitImages]]:
    """Yield an edit's fields and pictures, from a form or from JSON. They are in memory until admission."""
    if request.content_type.startswith("multipart/"):
        async with _read_form(request, EditFields) as fields_and_images:
            yield fields_and_images
        return
    async with AsyncExitStack() as stack:
        try:
            body = await stack.enter_async_context(read_picture_body(request, JsonEditBody))
        except UserError as error:
            raise name_field(error) from error
        addresses = request.app[SERVICES].page_addresses
        yield body, await asyncio.to_thread(read_references, body, addresses)


@asynccontextmanager
async def _read_form(request: web.Request, fields_type: type[T]) -> AsyncGenerator[tuple[T, InitImages]]:
    """Yield the texts of a form, and its pictures. They are in memory while the context lasts: until admission."""
    if not request.content_type.startswith("multipart/"):
        raise UserError("Send the pictures as a form (multipart/form-data).", 400)
    async with read_foreign_form(request, MAX_FILES) as (texts, files):
        pictures = (*files["image"], *files["image[]"])
        if not pictures:
            raise FieldError("image", "The form needs a picture: image, or several image[].", code="missing_parameter")
        mask = next(iter(files["mask"]), None)
        yield decode_fields(texts, fields_type), InitImages(pictures, mask, is_mask_transparency=mask is not None)


def _build(request: web.Request, body: DrawBody, prompt: str, images: InitImages | None = None) -> PictureRequest:
    return build_request(body, prompt, request.app[SERVICES].catalog, images, idempotency_key_of(request))


async def _admit(stack: AsyncExitStack, drawing: Drawing) -> AttendedRequest:
    """Admit the request until the stack ends. Raises `UserError`, with its field if it is about one."""
    with_previews = bool(drawing.body.stream and drawing.body.partial_images)
    try:
        return await stack.enter_async_context(
            admit_attended(drawing.http, drawing.request, with_previews=with_previews)
        )
    except UserError as error:
        raise name_flag(error, has_images=drawing.request.images is not None) from error


async def _answer(drawing: Drawing, attended: AttendedRequest) -> web.StreamResponse:
    if drawing.body.stream:
        return await _stream_pictures(drawing, attended)
    try:
        pictures = await wait_while_connected(drawing.http, attended.read_pictures())
    except (PicturesMissing, FeedClosed) as error:
        return shape_error(_refusal_of(error))
    images = [await _describe_picture(drawing, picture) for picture in pictures]
    usage, size = answers.count_usage(drawing.request, attended.views), f"{pictures[0].width}x{pictures[0].height}"
    payload = answers.build_images(drawing.body, images, size, usage, attended.views, time.time())
    return web.Response(body=msgspec.json.encode(payload), content_type="application/json")


def _refusal_of(error: PicturesMissing | FeedClosed) -> Refusal:
    if isinstance(error, FeedClosed):
        return Refusal(503, RESTARTING, error)
    return Refusal(400 if error.is_held or error.state == "cancelled" else 500, error.sentence, error)


async def _describe_picture(drawing: Drawing, picture: DrawnPicture) -> dict[str, Any]:
    """Return a picture as `url`, or as `b64_json`: msgspec encodes bytes so."""
    body = drawing.body
    if body.wants_url:
        return {"url": sign_address(drawing.http, picture, body, time.time())}
    return {"b64_json": await answers.convert_picture(picture.png, body.picture_format, body.output_compression)}


async def _stream_pictures(drawing: Drawing, attended: AttendedRequest) -> web.StreamResponse:
    async with open_stream(drawing.http) as stream:
        await race(
            _send_events(drawing, attended, stream),
            wait_for_disconnect(drawing.http),
            wait_for_sign_out(drawing.http),
        )
    return stream


async def _send_events(drawing: Drawing, attended: AttendedRequest, stream: EventSourceResponse) -> None:
    try:
        async for name, payload in _list_events(drawing, attended):
            await _send(drawing, stream, name, payload)
    except (PicturesMissing, FeedClosed) as error:
        refusal = _refusal_of(error)
        details = describe_error(error, refusal.sentence, refusal.status)
        await _send(drawing, stream, "error", {"type": "error", "error": details})


async def _list_events(drawing: Drawing, attended: AttendedRequest) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Yield the partial pictures, at most as many of each as the body asks for, then the finished ones."""
    body, wanted, sent_counts = drawing.body, drawing.body.partial_images or 0, Counter[int]()
    if wanted:
        async for preview in attended.previews():
            sent = sent_counts[preview.picture]
            if sent < wanted and preview.step * wanted >= sent * preview.total_steps:
                sent_counts[preview.picture] += 1
                yield answers.build_partial(drawing.kind, body, preview, sent, time.time())
    pictures = await attended.read_pictures()
    total = answers.count_usage(drawing.request, attended.views)
    for picture in pictures:
        content = await answers.convert_picture(picture.png, body.picture_format, body.output_compression)
        usage = answers.share_usage(total, len(pictures))
        yield answers.build_completed(drawing.kind, body, picture, content, usage, time.time())


async def _send(drawing: Drawing, stream: EventSourceResponse, name: str, payload: dict[str, Any]) -> None:
    await write_event(drawing.http, stream, format_event(name, msgspec.json.encode(payload)))
