"""Decodes request bodies into our structs: JSON, or a multipart form with pictures, in bounded time and size."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http import HttpProcessingError

from bot.domain.concurrency import PerMemberLimit
from bot.domain.errors import UserError
from bot.images.uploads.upload_decoder import MAX_UPLOAD_BYTES
from bot.web.middleware import member_of
from bot.web.renamed import describe_old_field, describe_old_part
from engine.contract import MAX_INIT_IMAGES

T = TypeVar("T", bound=msgspec.Struct)

BODY_TIMEOUT = 10.0  # seconds that a body may take
FORM_TIMEOUT = 120.0  # seconds that a form with pictures may take
MAX_JSON_BYTES = 64 * 1024  # bytes of the JSON, as of any body
CHUNK_BYTES = 64 * 1024
MAX_FORMS = 4  # forms with pictures, from first byte to admission: each may take a hundred megabytes
MALFORMED_FORM = (ValueError, AssertionError, HttpProcessingError, web.RequestPayloadError)  # aiohttp's errors for one
FORM_SLOTS = web.AppKey("form_slots", asyncio.Semaphore)
MEMBER_LIMIT = web.AppKey("member_limit", PerMemberLimit)  # one form per visitor at a time; the next one waits unread


@dataclass(frozen=True)
class FormFiles:
    """The files of a form."""

    pictures: tuple[bytes, ...] = ()
    mask: bytes | None = None


async def read_body(request: web.Request, body_type: type[T]) -> T:
    """Return the body as `body_type`. Refuse with 400 if it is malformed, with 408 if it does not arrive in time."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            body = await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error
    except web.RequestPayloadError as error:  # chunks or a compression that cannot be decoded
        raise UserError("The request can't be read.", 400) from error
    return _decode_body(body, body_type)


@asynccontextmanager
async def read_form(request: web.Request, body_type: type[T]) -> AsyncGenerator[tuple[T, FormFiles]]:
    """Yield the JSON part `request` of a form, with up to five files `picture` and one `mask`. A plain JSON body works
    too.

    The form is in memory while the context lasts, so only a few are admitted at once. Refuse with 400 a form that
    cannot be decoded, with 413 one that is too large, with 429 too many at once.
    """
    if not request.content_type.startswith("multipart/"):
        yield await read_body(request, body_type), FormFiles()
        return
    async with request.app[MEMBER_LIMIT].reserve(member_of(request).id):
        slots = request.app[FORM_SLOTS]
        if slots.locked():
            raise UserError("Too many uploads at once: try again in a moment.", 429)
        async with slots:
            yield await _read_multipart(request, body_type)


async def _read_multipart(request: web.Request, body_type: type[T]) -> tuple[T, FormFiles]:
    try:
        async with asyncio.timeout(FORM_TIMEOUT):
            json_parts, pictures, masks = await _read_parts(await request.multipart())
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error
    except MALFORMED_FORM as error:
        raise UserError("The form can't be read.", 400) from error
    if len(json_parts) != 1 or len(masks) > 1:
        raise UserError("A form has one part `request`, and at most one `mask`.", 400)
    return _decode_body(json_parts[0], body_type), FormFiles(tuple(pictures), masks[0] if masks else None)


async def _read_parts(reader: MultipartReader) -> tuple[list[bytes], list[bytes], list[bytes]]:
    parts: dict[str, list[bytes]] = {"request": [], "picture": [], "mask": []}
    while (part := await reader.next()) is not None:
        if sentence := describe_old_part(part.name if isinstance(part, BodyPartReader) else None):
            raise UserError(sentence, 400)
        if not isinstance(part, BodyPartReader) or part.name not in parts:
            raise UserError("A form has the parts `request`, `picture` and `mask`, and no other.", 400)
        if len(parts[part.name]) >= (MAX_INIT_IMAGES if part.name == "picture" else 1):
            raise UserError(
                f"A form has one `request`, one `mask` and up to {MAX_INIT_IMAGES} pictures (`picture`).", 400
            )
        parts[part.name].append(await _read_part(part, MAX_JSON_BYTES if part.name == "request" else MAX_UPLOAD_BYTES))
    return parts["request"], parts["picture"], parts["mask"]


async def _read_part(part: BodyPartReader, max_bytes: int) -> bytes:
    content = bytearray()
    while chunk := await part.read_chunk(CHUNK_BYTES):
        content += chunk
        if len(content) > max_bytes:
            kind = "picture" if max_bytes == MAX_UPLOAD_BYTES else "text"
            raise UserError(f"The {kind} is too large: the limit is {max_bytes // 1024} KiB.", 413)
    return bytes(content)


def _decode_body(body: bytes, body_type: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=body_type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        sentence = describe_old_field(str(error)) or f"The request can't be read: {error}."
        raise UserError(sentence, 400) from error
