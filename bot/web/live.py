"""The live streams (server-sent events): one for the whole page, one for a single job.

Each client reads at its own pace. The feed's subscription coalesces what a client has not read, so a slow one skips
frames and delays nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from aiohttp_sse import EventSourceResponse, sse_response

from bot.access import Action, forbidden, subject_of
from bot.desk.studio import Studio
from bot.feed import Developing, Moment, Settled, Subscription
from bot.refused import Refused
from bot.states import over
from bot.store import Unavailable
from bot.together import first_of
from bot.views import View
from bot.web import shown
from bot.web.door import GUILD, TERMINAL, VISITOR, member_of
from bot.web.told import Texts, Told

log = logging.getLogger(__name__)

STUDIO = web.AppKey("studio", Studio)
WARMING = web.AppKey("warming", asyncio.Event)  # set: our own engine was started and is not ready yet
CLOSING = web.AppKey("closing", asyncio.Event)
STREAMS = web.AppKey("streams", set)
TEXTS = web.AppKey("texts", Texts)

MOST_STREAMS = 200
MOST_EACH = 20  # of one visitor; not for the terminal, which is no single visitor
PACE = 0.03  # seconds after each frame of a stream: about as often as the eye notices
GLANCE = 1.0  # seconds between two checks of the workers
RECENT = 30  # jobs that the page starts with
UNREAD = 64 * 1024  # bytes that may wait in the kernel for a slow client
STALLED = 30.0  # seconds without a read, after which a client is cut off
END = "end"  # the id of a job's last event: a browser that reconnects with it is told to stop


def routes() -> list[web.RouteDef]:
    return [web.get("/api/events", events), web.get("/api/jobs/{id}/events", job_events)]


async def events(request: web.Request) -> web.StreamResponse:
    """Stream all that the page shows: `room`, `jobs`, then `job`, `queued`, `loading`, `frame` as they happen."""
    async with _stream(request) as stream, request.app[STUDIO].feed.subscribe() as moments:
        page = Page(request, stream)
        await first_of(page.follow(moments), page.watch_room(), _gone(request))
    return stream


def at_work(app: web.Application) -> dict[str, Any]:
    """Return the live workers, or that our own engine is starting."""
    studio = app[STUDIO]
    return shown.room(studio.workers(), warming=app[WARMING].is_set(), starting=studio.starting())


class Page:
    """One open page: its stream, and which jobs it may see."""

    def __init__(self, request: web.Request, stream: EventSourceResponse) -> None:
        self._request, self._app = request, request.app
        self._studio = request.app[STUDIO]
        self._reader = member_of(request)
        self._stream = stream
        self._seen: dict[str, bool] = {}  # job → shown here

    async def follow(self, moments: Subscription) -> None:
        """Send the jobs as they are, then each event as it comes."""
        queue, recent = await self._studio.queue(GUILD), await self._studio.recent(GUILD, RECENT)
        views = {view.id: view for view in [*recent, *queue] if not view.hidden_from(self._reader.id)}
        self._seen.update(dict.fromkeys(views, True))
        ordered = sorted(views.values(), key=lambda view: (view.created, view.id))
        await self._tell("jobs", {"jobs": [shown.job(view, self._reader) for view in ordered]})
        async for moment in moments:
            if await self._pass_on(moment):
                await asyncio.sleep(PACE)

    async def _pass_on(self, moment: Moment) -> bool:
        """Return True if a frame was sent: only frames come so often that they need a pace."""
        if moment.job not in self._seen or isinstance(moment, Settled):
            await self._show(moment.job)
        if isinstance(moment, Settled):
            self._seen.pop(moment.job, None)
        elif self._seen.get(moment.job):
            await _tell_moment(self._request, self._stream, moment)
            return isinstance(moment, Developing)
        return False

    async def _show(self, job: str) -> None:
        """Send the whole job when it is new to the page or over, or send that it was deleted.

        Jobs of other servers and private jobs of others are not sent.
        """
        try:
            view = await self._studio.view(job)
        except Refused as refused:
            if self._seen.get(job, True):
                await self._tell("gone", {"id": job, "reason": refused.sentence})
            return
        self._seen[job] = view.guild == GUILD and not view.hidden_from(self._reader.id)
        if self._seen[job]:
            await self._tell("job", shown.job(view, self._reader))

    async def watch_room(self) -> None:
        """Send the live workers, at once and whenever they change."""
        told: dict[str, Any] | None = None
        while True:
            room = at_work(self._app)
            if room != told:
                await self._tell("room", room)
                told = room
            await asyncio.sleep(GLANCE)

    async def _tell(self, event: str, value: dict[str, Any]) -> None:
        await self._stream.send(json.dumps(value), event=event)


async def job_events(request: web.Request) -> web.StreamResponse:
    """Stream one job: `queued` unless it is over, `loading` while its model loads, `frame` as it runs, and its end.

    The stream closes after the end.
    """
    studio = request.app[STUDIO]
    view = await visible(request)
    if request.headers.get("Last-Event-ID") == END:
        return web.Response(status=204)  # this status stops an EventSource
    async with _stream(request) as stream, studio.feed.subscribe(view.id) as moments:
        await first_of(_follow_job(request, stream, moments), _gone(request))
    return stream


async def _follow_job(request: web.Request, stream: EventSourceResponse, moments: Subscription) -> None:
    view = await visible(request)
    if over(view.state):
        return await _tell_end(request, stream)
    place = {"id": view.id, "state": view.state, "place": view.ahead or 0, "eta": view.eta, "starting": view.starting}
    await stream.send(json.dumps(place), event="queued")
    async for moment in moments:
        if isinstance(moment, Settled):
            return await _tell_end(request, stream)
        await _tell_moment(request, stream, moment)
        if isinstance(moment, Developing):
            await asyncio.sleep(PACE)


async def _tell_moment(request: web.Request, stream: EventSourceResponse, moment: Told) -> None:
    """Send one event as bytes that all pages share.

    The library's `send` searches each text for line ends: with a hundred pages that took most of the bot's time. A
    client that reads nothing for too long is cut off. Raise ConnectionError and TimeoutError.
    """
    try:
        async with asyncio.timeout(STALLED):
            await stream.write(request.app[TEXTS].of(moment))
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise


async def _tell_end(request: web.Request, stream: EventSourceResponse) -> None:
    try:
        view = await visible(request)
    except Refused as refused:  # deleted meanwhile
        gone = {"id": request.match_info["id"], "state": "deleted", "reason": refused.sentence}
        return await stream.send(json.dumps(gone), event="deleted", id=END)
    await stream.send(json.dumps(shown.job(view, member_of(request))), event=view.state, id=END)


async def visible(request: web.Request, job: str = "") -> View:
    """Return the job in the address if this visitor may see it; a guest sees only this room's. Refuse with 404.

    Only the author sees a private job: not even the room's owner does.
    """
    view = await request.app[STUDIO].view(job or request.match_info["id"])
    if (view.guild != GUILD and not request[VISITOR].owner) or view.hidden_from(member_of(request).id):
        raise Refused("There is no such job.", 404)
    return view


async def permitted(request: web.Request, action: Action, job: str = "") -> View:
    """Return the job in the address if this visitor may do `action` with it. Refuse with 404, or with 403.

    The room's owner sees the jobs of every server, but may continue only those of this room.
    """
    view = await visible(request, job)
    if reason := forbidden(action, member_of(request), subject_of(view)):
        raise Refused(reason, 403)
    return view


async def within_reach(request: web.Request, action: Action = "cancel") -> str:
    """Return the id of a job that this visitor may stop, seen or not: the room's owner may also stop private ones."""
    with contextlib.suppress(Refused):
        return (await visible(request)).id
    view = await request.app[STUDIO].view(request.match_info["id"])
    if forbidden(action, member_of(request), subject_of(view)):
        raise Refused("There is no such job.", 404)
    return view.id


@contextlib.asynccontextmanager
async def _stream(request: web.Request) -> AsyncIterator[EventSourceResponse]:
    """Yield an event stream that counts against the limits. An error ends it, and the client reconnects."""
    streams, visitor = request.app[STREAMS], request[VISITOR].id
    theirs = 0 if visitor == TERMINAL else sum(whose == visitor for whose, _ in streams)
    if len(streams) >= MOST_STREAMS or theirs >= MOST_EACH:
        raise Refused("Too many pages are open here at once. Close one and try again.", 429)
    streams.add(one := (visitor, object()))
    try:
        _keep_little(request)
        async with sse_response(request, send_timeout=STALLED, ping_interval=10) as stream:
            try:
                yield stream
            except Unavailable as error:  # is a ConnectionError too
                log.warning("a live stream ended: %s", error)
            except (ConnectionError, TimeoutError):
                log.debug("a reader of a live stream went away")
            except Exception:
                log.exception("a live stream broke")
    finally:
        streams.discard(one)


def _keep_little(request: web.Request) -> None:
    """Set small buffers: otherwise a slow client would see megabytes of old frames before a new one."""
    if request.transport is None:
        return
    request.transport.set_write_buffer_limits(high=UNREAD)  # type: ignore[attr-defined]
    number = request.transport.get_extra_info("socket")
    if number is not None:
        number.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD)


async def _gone(request: web.Request) -> None:
    """Return when the client has gone or the server closes."""
    while request.transport is not None and not request.transport.is_closing():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GLANCE):
                await request.app[CLOSING].wait()
            return
