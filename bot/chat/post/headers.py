"""Rate limits from Discord's response headers for the edit policy; the hard-coded rate is only a first guess.

Traces the client's own requests, since discord.py keeps these headers to itself. Only edits of messages and new
messages matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp

from bot.chat.post.edits import Edits
from bot.chat.post.mail import token_bucket

LONGEST = 3600.0  # seconds of a window that we believe
CHANNEL = re.compile(r"/channels/(\d+)/messages/\d+$")
POSTS = re.compile(r"/channels/(\d+)/messages$")
TOKEN = re.compile(r"/webhooks/\d+/([^/]+)/messages/[^/]+$")


def bucket_of(method: str, path: str) -> str | None:
    """Return the policy's name of the bucket that counts a request; None for requests of other kinds."""
    if method == "POST":
        match = POSTS.search(path)
        return f"post:{match[1]}" if match else None
    if method != "PATCH":
        return None
    if match := CHANNEL.search(path):
        return f"channel:{match[1]}"
    if match := TOKEN.search(path):
        return token_bucket(match[1])
    return None


def limits(headers: Mapping[str, str]) -> tuple[int, int, float] | None:
    """Return requests in a window, those left of it, and seconds until it ends; None if the headers lack them.

    Must not raise: that would fail a request that Discord has accepted.
    """
    try:
        limit, left = int(headers["X-RateLimit-Limit"]), int(headers["X-RateLimit-Remaining"])
        after = float(headers["X-RateLimit-Reset-After"])
    except (KeyError, ValueError):
        return None
    return (limit, left, after) if limit > 0 and left >= 0 and 0 <= after <= LONGEST else None


def trace(edits: Edits[Any], clock: Callable[[], float]) -> aiohttp.TraceConfig:
    """Return a trace for `discord.Client(http_trace=…)` that keeps `edits` informed."""

    async def learn(
        _session: aiohttp.ClientSession, _context: SimpleNamespace, params: aiohttp.TraceRequestEndParams
    ) -> None:
        told, bucket = limits(params.response.headers), bucket_of(params.method, params.url.path)
        if bucket is not None and told is not None:
            limit, remaining, after = told
            edits.learn(bucket, limit, remaining, clock() + after)

    config = aiohttp.TraceConfig()
    config.on_request_end.append(learn)
    return config
