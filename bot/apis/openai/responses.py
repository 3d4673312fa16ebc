"""`POST /v1/responses` with the tool `image_generation`: the newest message is the prompt, and its pictures are edited.

There is no language model: the tool is always called, with the words as they are. Nothing is kept of a response.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from bot.apis.openai import answers
from bot.apis.openai.bodies import EditFields, ResponseBody, name_field
from bot.apis.openai.drawing import DRAWING_ERRORS, Drawing, DrawingError, Event, admit_drawing, refusal_of, send_events
from bot.apis.openai.errors import shape_error
from bot.apis.openai.image_references import read_picture_urls
from bot.domain.errors import UserError
from bot.jobs.attended_requests import DrawnPicture, FeedClosed, PicturesMissing
from bot.jobs.init_images import InitImages, PageAddresses
from bot.web.attendance import read_pictures
from bot.web.request_body import read_picture_body
from bot.web.routes import answer_json
from bot.web.sse import SERVICES

CALL = "response.image_generation_call"


async def create_response(request: web.Request) -> web.StreamResponse:
    """Draw a picture as a response of OpenAI's newer API."""
    async with AsyncExitStack() as stack:
        drawing = await _admit(stack, request)
        if drawing.body.stream:
            return await send_events(request, _number_events(_list_events(drawing)))
        try:
            pictures = await read_pictures(request, drawing.attended_request)
        except (PicturesMissing, FeedClosed) as error:
            return shape_error(refusal_of(error))
        items = [await _describe_call(drawing, picture) for picture in pictures]
        return answer_json(_describe_response(drawing, "completed", items))


async def _admit(stack: AsyncExitStack, request: web.Request) -> Drawing:
    async with _read_response(request) as (body, images):
        attended_request = await admit_drawing(stack, request, body, images)
        return Drawing(request, body, attended_request, len(images.pictures) if images else 0)


@asynccontextmanager
async def _read_response(request: web.Request) -> AsyncGenerator[tuple[EditFields, InitImages | None]]:
    """Yield the tool's fields, and the pictures of the newest message."""
    async with AsyncExitStack() as stack:
        try:
            body = await stack.enter_async_context(read_picture_body(request, ResponseBody))
        except UserError as error:
            raise name_field(error) from error
        fields = body.read_tool()
        urls = body.list_picture_urls()
        if not urls:
            yield fields, None
            return
        addresses = request.app[SERVICES].get(PageAddresses)
        yield fields, InitImages(await asyncio.to_thread(read_picture_urls, urls, "input", addresses))


async def _number_events(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[Event]:
    numbers = itertools.count()
    async for event in events:
        yield event["type"], {**event, "sequence_number": next(numbers)}


async def _list_events(drawing: Drawing) -> AsyncIterator[dict[str, Any]]:
    """Yield what a stream tells: the call begins, its partial pictures, its end and the response's."""
    item_id = _call_id(drawing)
    body = drawing.body
    place = {"item_id": item_id, "output_index": 0}
    begun: dict[str, Any] = {"id": item_id, "type": "image_generation_call", "status": "in_progress", "result": None}
    for name in ("created", "in_progress"):
        yield {"type": f"response.{name}", "response": _describe_response(drawing, "in_progress", [])}
    yield {"type": "response.output_item.added", "output_index": 0, "item": begun}
    for name in ("in_progress", "generating"):
        yield {"type": f"{CALL}.{name}", **place}
    try:
        async for index, preview in drawing.follow_previews():
            look = answers.describe_look(body, body.size or "auto") | {"output_format": "jpeg"}
            partial = {"partial_image_b64": preview.jpeg, "partial_image_index": index}
            yield {"type": f"{CALL}.partial_image", **place, **partial, **look}
        (picture, *_) = await drawing.attended_request.read_pictures()
        item = await _describe_call(drawing, picture)
    except DRAWING_ERRORS as error:
        failed = _describe_response(drawing, "failed", [{**begun, "status": "failed"}], _describe_failure(error))
        yield {"type": "response.failed", "response": failed}
        return
    yield {"type": f"{CALL}.completed", **place}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": _describe_response(drawing, "completed", [item])}


def _describe_failure(error: DrawingError) -> dict[str, str]:
    is_held = isinstance(error, PicturesMissing) and error.is_held
    code = "image_content_policy_violation" if is_held else "server_error"
    return {"code": code, "message": refusal_of(error).sentence}


def _call_id(drawing: Drawing) -> str:
    return f"ig_{drawing.attended_request.jobs[0].job}"


async def _describe_call(drawing: Drawing, picture: DrawnPicture) -> dict[str, Any]:
    """Return a finished call of the tool. msgspec encodes its bytes as base64."""
    body = drawing.body
    content = await answers.convert_picture(picture.png, body.picture_format, body.output_compression)
    look = answers.describe_look(body, f"{picture.width}x{picture.height}")
    return {"id": _call_id(drawing), "type": "image_generation_call", "status": "completed", "result": content, **look}


def _describe_response(
    drawing: Drawing, status: str, items: list[dict[str, Any]], error: dict[str, str] | None = None
) -> answers.OpenAIResponse:
    usage = msgspec.to_builtins(drawing.count_usage())
    usage["input_tokens_details"]["cached_tokens"] = 0
    usage["output_tokens_details"] = {"reasoning_tokens": 0}
    return answers.OpenAIResponse(
        id=f"resp_{drawing.attended_request.jobs[0].job}",
        created_at=int(time.time()),
        status=status,
        model=drawing.body.model or "darkroom",
        output=items,
        error=error,
        usage=usage if status == "completed" else None,
        darkroom=answers.describe_jobs(drawing.attended_request.views),
    )
