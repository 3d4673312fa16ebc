"""Decodes request bodies into our structs: JSON, or a multipart form with pictures, in bounded time and size."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from aiohttp import BodyPartReader, MultipartReader, web

from bot.images.intake import MOST_BYTES
from bot.lines import Lines
from bot.refused import Refused
from bot.web.door import member_of
from engine.job import MAX_SOURCES

T = TypeVar("T", bound=msgspec.Struct)

PATIENCE = 10.0  # seconds that a body may take
BRINGING = 120.0  # seconds that a form with pictures may take
MOST_WORDS = 64 * 1024  # bytes of the JSON, as of any body
CHUNK = 64 * 1024
AT_ONCE = 4  # forms with pictures, from first byte to admission: each may take a hundred megabytes
FORMS = web.AppKey("forms", asyncio.Semaphore)
LINES = web.AppKey("lines", Lines)  # one form a visitor is received; the next one waits unread


@dataclass(frozen=True)
class Brought:
    """The files of a form."""

    pictures: tuple[bytes, ...] = ()
    mask: bytes | None = None


async def body_of(request: web.Request, shape: type[T]) -> T:
    """Return the body as `shape`. Refuse with 400 what cannot be read, with 408 what does not come in time."""
    try:
        async with asyncio.timeout(PATIENCE):
            body = await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error
    return _decoded(body, shape)


@asynccontextmanager
async def form_of(request: web.Request, shape: type[T]) -> AsyncIterator[tuple[T, Brought]]:
    """Yield the JSON part `order` of a form, with up to five files `picture` and one `mask`. A plain JSON body works
    too.

    The form is in memory while the context lasts, so only a few are admitted at once. Refuse with 400 what cannot be
    read, with 413 what is too large, with 429 where too many come at once.
    """
    if not request.content_type.startswith("multipart/"):
        yield await body_of(request, shape), Brought()
        return
    async with request.app[LINES].turn(member_of(request).id):
        turn = request.app[FORMS]
        if turn.locked():
            raise Refused("Others are sending pictures just now: try again in a moment.", 429)
        async with turn:
            yield await _form(request, shape)


async def _form(request: web.Request, shape: type[T]) -> tuple[T, Brought]:
    try:
        async with asyncio.timeout(BRINGING):
            words, pictures, masks = await _parts(await request.multipart())
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error
    except (ValueError, AssertionError) as error:  # aiohttp's errors for a malformed form
        raise Refused("The form can't be read.", 400) from error
    if len(words) != 1 or len(masks) > 1:
        raise Refused("A form has one part `order`, and at most one `mask`.", 400)
    return _decoded(words[0], shape), Brought(tuple(pictures), masks[0] if masks else None)


async def _parts(reader: MultipartReader) -> tuple[list[bytes], list[bytes], list[bytes]]:
    found: dict[str, list[bytes]] = {"order": [], "picture": [], "mask": []}
    while (part := await reader.next()) is not None:
        if not isinstance(part, BodyPartReader) or part.name not in found:
            raise Refused("A form has the parts `order`, `picture` and `mask`, and no other.", 400)
        if len(found[part.name]) >= (MAX_SOURCES if part.name == "picture" else 1):
            raise Refused(f"A form has one `order`, one `mask` and up to {MAX_SOURCES} pictures (`picture`).", 400)
        found[part.name].append(await _bounded(part, MOST_WORDS if part.name == "order" else MOST_BYTES))
    return found["order"], found["picture"], found["mask"]


async def _bounded(part: BodyPartReader, most: int) -> bytes:
    content = bytearray()
    while chunk := await part.read_chunk(CHUNK):
        content += chunk
        if len(content) > most:
            what = "pictures" if most == MOST_BYTES else "words"
            raise Refused(f"Too large: {what} of up to {most // 1024} KiB are taken.", 413)
    return bytes(content)


def _decoded(body: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"The request can't be read: {error}.", 400) from error
