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

from bot.discord.delivery.discord_api import token_bucket
from bot.discord.delivery.edit_policy import EditPolicy

MAX_WINDOW = 3600.0  # longest window in seconds that we believe
CHANNEL_EDIT_PATH = re.compile(r"/channels/(\d+)/messages/\d+$")
NEW_MESSAGE_PATH = re.compile(r"/channels/(\d+)/messages$")
TOKEN_EDIT_PATH = re.compile(r"/webhooks/\d+/([^/]+)/messages/[^/]+$")


def bucket_of_request(method: str, path: str) -> str | None:
    """Return the policy's name of the bucket that counts a request; None for requests of other kinds."""
    if method == "POST":
        match = NEW_MESSAGE_PATH.search(path)
        return f"post:{match[1]}" if match else None
    if method != "PATCH":
        return None
    if match := CHANNEL_EDIT_PATH.search(path):
        return f"channel:{match[1]}"
    if match := TOKEN_EDIT_PATH.search(path):
        return token_bucket(match[1])
    return None


def parse_limits(headers: Mapping[str, str]) -> tuple[int, int, float] | None:
    """Return requests in a window, those left of it, and seconds until it ends; None if the headers lack them.

    Must not raise: that would fail a request that Discord has accepted.
    """
    try:
        limit = int(headers["X-RateLimit-Limit"])
        remaining = int(headers["X-RateLimit-Remaining"])
        reset_after = float(headers["X-RateLimit-Reset-After"])
    except (KeyError, ValueError):
        return None
    return (limit, remaining, reset_after) if limit > 0 and remaining >= 0 and 0 <= reset_after <= MAX_WINDOW else None


def trace_rate_limits(edit_policy: EditPolicy[Any], clock: Callable[[], float]) -> aiohttp.TraceConfig:
    """Return a trace for `discord.Client(http_trace=…)` that keeps `edit_policy` informed."""

    async def on_request_end(
        _session: aiohttp.ClientSession, _context: SimpleNamespace, params: aiohttp.TraceRequestEndParams
    ) -> None:
        rate_limit = parse_limits(params.response.headers)
        bucket = bucket_of_request(params.method, params.url.path)
        if bucket is not None and rate_limit is not None:
            limit, remaining, reset_after = rate_limit
            edit_policy.apply_limits(bucket, limit, remaining, clock() + reset_after)

    config = aiohttp.TraceConfig()
    config.on_request_end.append(on_request_end)
    return config
