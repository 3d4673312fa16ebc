"""Tells a caller how far a job is, with previews as a resource: a progress notification holds no picture."""

from __future__ import annotations

import base64
from contextlib import aclosing
from typing import Any

import aiohttp
import anyio
from cachetools import LRUCache
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import InMemorySubscriptionBus, ResourceUpdated
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from bot.apis.mcp.reports import preview_uri
from bot.cli.imagine import http_client

MAX_WATCHED = 1024  # addresses that clients of earlier protocols have subscribed to; the oldest is forgotten
PREVIEW_SECONDS = 5.0  # how long a frame of a running job is waited for


class WatchedPreviews:
    """Who wants to hear of new previews: streams of `subscriptions/listen`, and subscriptions before 2026-07-28."""

    def __init__(self) -> None:
        self.bus = InMemorySubscriptionBus()
        self._watched: LRUCache[str, bool] = LRUCache(MAX_WATCHED)

    def add(self, uri: str) -> None:
        self._watched[uri] = True

    def remove(self, uri: str) -> None:
        self._watched.pop(uri, None)

    async def announce(self, context: ServerRequestContext[Any, Any], uri: str) -> None:
        """Say that the preview at `uri` changed; by the old way to the caller alone, whose connection this is."""
        await self.bus.publish(ResourceUpdated(uri=uri))
        if uri in self._watched and context.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
            await context.session.send_resource_updated(uri)


class ProgressReporter:
    """The progress of one call, in percent of all its jobs. Each number is larger than the one before, as MCP asks."""

    def __init__(self, context: ServerRequestContext[Any, Any], watch: WatchedPreviews, jobs: int) -> None:
        self._context = context
        self._watch = watch
        self._jobs = jobs
        self._sent = 0.0
        self._message = ""

    async def report(self, position: int, event: str, value: dict[str, Any]) -> None:
        """Report an event of the job at `position`; at most once for each percent and each other sentence."""
        share, message = describe_event(event, value)
        if message == self._message or event in http_client.END_EVENTS:
            return  # the answer says how it ended
        self._message = message
        self._sent = max(self._sent + 0.001, 100 * (position + share) / self._jobs)
        await self._context.session.report_progress(self._sent, 100.0, message)
        for number in value.get("frames", ()):
            await self._watch.announce(self._context, preview_uri(value["id"], int(number)))


def describe_event(event: str, value: dict[str, Any]) -> tuple[float, str]:
    """Return how far a job is, 0 to 1, and a sentence about it."""
    if event == "frame":
        share = value["step"] / max(1, value["total_steps"])
        number = min(map(int, value["frames"]), default=1)
        return share, f"{100 * share:.0f} % drawn; preview at {preview_uri(value['id'], number)}"
    if event == "loading":
        return 0.0, str(value["sentence"])
    if event == "queued":
        ahead = int(value["jobs_ahead"] or 0)
        return 0.0, f"{ahead} jobs ahead in the queue" if ahead else "next in the queue"
    return 1.0, event


async def read_frames(session: aiohttp.ClientSession, job: str) -> dict[int, bytes]:
    """Return the next previews of a running job as JPEG, by picture from 1; none if none comes in time."""
    with anyio.move_on_after(PREVIEW_SECONDS):
        async with aclosing(http_client.follow_job(session, job)) as events:
            async for event, value in events:
                if event == "frame" and value["frames"]:
                    return {int(number): base64.b64decode(jpeg) for number, jpeg in value["frames"].items()}
    return {}
