"""A request's body as one of our structs: JSON, read in bounded time.

Knows JSON and a clock; knows nothing of what is asked for.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
from aiohttp import web

from bot.refused import Refused

T = TypeVar("T", bound=msgspec.Struct)

PATIENCE = 10.0  # seconds that a body may take


async def body_of(request: web.Request, shape: type[T]) -> T:
    """The body as `shape`. Refuses with 400 what can't be read; 408 for one that does not come."""
    try:
        async with asyncio.timeout(PATIENCE):
            body = await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"The request can't be read: {error}.", 400) from error
