"""`POST /v1/images/…`: OpenAI's image API over the job service. The answer waits for the pictures, or streams them.

A client that disconnects cancels its jobs, unless its request has an Idempotency-Key (`bot.web.attendance`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType
from typing import Any, TypeVar

from aiohttp import web

from bot.apis.openai import answers
from bot.apis.openai.bodies import (
    DrawBody,
    EditFields,
    GenerationBody,
    JsonEditBody,
    VariationFields,
    decode_fields,
    name_field,
)
from bot.apis.openai.drawing import DRAWING_ERRORS, Drawing, Event, admit_drawing, refusal_of, send_events
from bot.apis.openai.errors import FieldError, describe_error, shape_error
from bot.apis.openai.image_references import read_references
from bot.apis.openai.picture_addresses import sign_address
from bot.domain.errors import UserError
from bot.jobs.attended_requests import DrawnPicture, FeedClosed, PicturesMissing
from bot.jobs.init_images import InitImages, PageAddresses
from bot.web.attendance import read_pictures
from bot.web.request_body import read_body, read_foreign_form, read_picture_body
from bot.web.routes import answer_json
from bot.web.sse import SERVICES
from engine.contract import MAX_INIT_IMAGES

T = TypeVar("T", bound=DrawBody)

MAX_FILES: Mapping[str, int] = MappingProxyType({"image": MAX_INIT_IMAGES, "image[]": MAX_INIT_IMAGES, "mask": 1})


async def generate_images(request: web.Request) -> web.StreamResponse:
    """Draw pictures from a prompt."""
    try:
        body = await read_body(request, GenerationBody)
    except UserError as error:
        raise name_field(error) from error
    async with AsyncExitStack() as stack:
        return await _answer(Drawing(request, body, await admit_drawing(stack, request, body)))


async def edit_images(request: web.Request) -> web.StreamResponse:
    """Change pictures by a prompt: by words, inside a mask, or with the pictures as a beginning."""
    async with AsyncExitStack() as stack:
        return await _answer(await _admit_edit(stack, request))


async def vary_image(request: web.Request) -> web.StreamResponse:
    """Draw pictures that begin with a picture."""
    async with AsyncExitStack() as stack:
        return await _answer(await _admit_variation(stack, request))


async def _admit_edit(stack: AsyncExitStack, request: web.Request) -> Drawing:
    async with _read_edit(request) as (body, images):
        attended_request = await admit_drawing(stack, request, body, images)
        return Drawing(request, body, attended_request, len(images.pictures), "image_edit")


async def _admit_variation(stack: AsyncExitStack, request: web.Request) -> Drawing:
    async with _read_form(request, VariationFields) as (body, images):
        return Drawing(request, body, await admit_drawing(stack, request, body, images), len(images.pictures))


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
        addresses = request.app[SERVICES].get(PageAddresses)
        yield body.without_pictures(), await asyncio.to_thread(read_references, body, addresses)


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


async def _answer(drawing: Drawing) -> web.StreamResponse:
    if drawing.body.stream:
        return await send_events(drawing.http, _list_events(drawing))
    attended_request = drawing.attended_request
    try:
        pictures = await read_pictures(drawing.http, attended_request)
    except (PicturesMissing, FeedClosed) as error:
        return shape_error(refusal_of(error))
    images = [await _describe_picture(drawing, picture) for picture in pictures]
    answer = answers.OpenAIImages(
        created=int(time.time()),
        data=images,
        **answers.describe_look(drawing.body, f"{pictures[0].width}x{pictures[0].height}"),
        usage=drawing.count_usage(),
        darkroom=answers.describe_jobs(attended_request.views),
    )
    return answer_json(answer)


async def _describe_picture(drawing: Drawing, picture: DrawnPicture) -> dict[str, Any]:
    """Return a picture as `url`, or as `b64_json`: msgspec encodes bytes so."""
    body = drawing.body
    if body.wants_url:
        return {"url": sign_address(drawing.http, picture, body, time.time())}
    return {"b64_json": await answers.convert_picture(picture.png, body.picture_format, body.output_compression)}


async def _list_events(drawing: Drawing) -> AsyncIterator[Event]:
    """Yield what a stream tells; an error instead of the pictures that do not come."""
    try:
        async for event in _list_pictures(drawing):
            yield event
    except DRAWING_ERRORS as error:
        refusal = refusal_of(error)
        details = describe_error(error, refusal.sentence, refusal.status)
        yield "error", {"type": "error", "error": details}


async def _list_pictures(drawing: Drawing) -> AsyncIterator[Event]:
    """Yield the partial pictures, at most as many of each as the body asks for, then the finished ones."""
    body = drawing.body
    async for index, preview in drawing.follow_previews():
        yield answers.build_partial(drawing.kind, body, preview, index, time.time())
    pictures = await drawing.attended_request.read_pictures()
    usage = drawing.count_usage(len(pictures))
    for picture in pictures:
        content = await answers.convert_picture(picture.png, body.picture_format, body.output_compression)
        yield answers.build_completed(drawing.kind, body, picture, content, usage, time.time())
