"""Reads server-sent events from a response, as the HTML standard defines them (9.2.6), each within a bound."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp

from engine.contract.rejection import JobRejected


async def read_events(response: aiohttp.ClientResponse, limit: int) -> AsyncIterator[bytes]:
    """Yield the data of each whole event. Raises `JobRejected` for an event of more than `limit` bytes."""
    buffer = bytearray()
    data = bytearray()
    async for chunk in response.content.iter_any():
        buffer += chunk
        if len(buffer) + len(data) > limit:
            raise JobRejected("The backend's answer is too long.", "worker")
        if b"\n" not in chunk:
            continue
        *lines, rest = bytes(buffer).split(b"\n")
        buffer = bytearray(rest)
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data += line.removeprefix(b"data:").removeprefix(b" ") + b"\n"
            elif not line and data:
                yield bytes(data[:-1])
                data = bytearray()
