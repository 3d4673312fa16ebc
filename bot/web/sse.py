"""The live streams (server-sent events): one for the whole page, one for a single job.

Each client reads at its own pace. The feed's subscription coalesces what a client has not read, so a slow one skips
frames and delays nobody.

Caches of encoded events and jobs: each is encoded once, however many pages are open.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import socket
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import msgspec
from aiohttp import web
from aiohttp_sse import EventSourceResponse, sse_response
from cachetools import LRUCache

from bot.domain import texts
from bot.domain.concurrency import SharedCall, race
from bot.domain.dto import JobView, Member
from bot.domain.errors import UserError
from bot.domain.events import JobEnded, JobEvent, JobProgress, JobSteered, ModelLoading, QueueMoved, Subscription
from bot.domain.job_states import is_end
from bot.policy.permissions import Action, forbidden_reason, job_ref
from bot.services import Services
from bot.store import DatabaseUnavailable
from bot.web import answers
from bot.web.middleware import GUILD, TERMINAL_ID, VISITOR, is_signed_out, member_of
from bot.web.routes import Route, Shape

log = logging.getLogger(__name__)

MAX_JOBS = 256  # jobs


class EventCache:
    """The last encoded event of each job. The feed gives the same object to all pages that keep up."""

    def __init__(self) -> None:
        self._last: LRUCache[str, tuple[LiveEvent, bytes]] = LRUCache(MAX_JOBS)

    def encode(self, job_event: LiveEvent) -> bytes:
        """Return the event in its wire format."""
        last = self._last.get(job_event.job)
        if last is None or last[0] is not job_event:
            name, value = serialize_event(job_event)
            last = self._last[job_event.job] = job_event, format_event(name, msgspec.json.encode(value))
        return last[1]


class JobCache:
    """The last JSON of each job, as its author, a moderator and everybody else see it."""

    def __init__(self) -> None:
        self._last: LRUCache[str, tuple[JobView, dict[tuple[bool, bool], bytes]]] = LRUCache(MAX_JOBS)

    def encode(self, view: JobView, reader: Member) -> bytes:
        """Return the job as `reader` sees it, as JSON."""
        last = self._last.get(view.id)
        if last is None or last[0] != view:
            last = self._last[view.id] = view, {}
        role = (view.member_id == reader.id, reader.is_moderator)
        if role not in last[1]:
            last[1][role] = msgspec.json.encode(answers.describe_job(view, reader))
        return last[1][role]

    def encode_list(self, views: Iterable[JobView], reader: Member) -> bytes:
        """Return `{"jobs": […]}`."""
        return b'{"jobs":[' + b",".join(self.encode(view, reader) for view in views) + b"]}"


SERVICES = web.AppKey("services", Services)
ENGINE_LOADING = web.AppKey("engine_loading", asyncio.Event)  # set: our own engine was started and is not ready yet
SHUTDOWN = web.AppKey("shutdown", asyncio.Event)
STREAMS = web.AppKey("streams", set[tuple[str, object]])
EVENT_CACHE = web.AppKey("event_cache", EventCache)
JOB_CACHE = web.AppKey("job_cache", JobCache)
PAGE_JOBS = web.AppKey("page_jobs", SharedCall[list[JobView]])

MAX_STREAMS = 200
MAX_VISITOR_STREAMS = 20  # streams of one visitor; the terminal has no such limit
FRAME_PAUSE = 0.03  # seconds after each frame of a stream: about as often as the eye notices
POLL_SECONDS = 1.0  # seconds between two checks of the workers
SESSION_SECONDS = 10.0  # seconds between two checks that a stream's session has not ended
MAX_RECENT_JOBS = 30  # jobs that the page starts with
MAX_SEEN_JOBS = 4096  # jobs of which a stream remembers whether the page shows them
SEND_BUFFER_BYTES = 64 * 1024  # bytes that may wait in the kernel for a slow client
STALL_TIMEOUT = 30.0  # seconds without a read, after which a client is disconnected
SLOWEST_READ = 16 * 1024  # bytes a second of a large event that a client reads at least
END_EVENT_ID = "end"  # the id of a job's last event: a browser that reconnects with it is told to stop


async def stream_events(request: web.Request) -> web.StreamResponse:
    """Stream all that the page shows: `workers`, `jobs`, then `job`, `queued`, `loading`, `frame` as they happen."""
    async with open_stream(request) as stream, request.app[SERVICES].feed.subscribe() as subscription:
        page = PageStream(request, stream)
        await race(
            page.follow_jobs(subscription),
            page.watch_workers(),
            wait_for_disconnect(request),
            wait_for_sign_out(request),
        )
    return stream


def share_page_jobs(services: Services) -> SharedCall[list[JobView]]:
    """Return the shared call that loads the jobs that a page starts with, the oldest first, hidden ones too.

    A server that comes back is asked for them by all its pages at once.
    """

    async def load_page_jobs() -> list[JobView]:
        recent = await services.job_views.load_recent(GUILD, MAX_RECENT_JOBS)
        queue = await services.job_views.load_queue(GUILD)
        return sorted({view.id: view for view in [*recent, *queue]}.values(), key=lambda view: (view.created, view.id))

    return SharedCall(load_page_jobs)


def describe_workers(app: web.Application) -> answers.Workers:
    """Return the live workers, or that our own engine is starting."""
    services = app[SERVICES]
    starting = services.job_views.startup_notice()
    return answers.describe_workers(
        services.live_workers(), engine_loading=app[ENGINE_LOADING].is_set(), starting=starting
    )


class PageStream:
    """One open page: its stream, and which jobs it may see."""

    def __init__(self, request: web.Request, stream: EventSourceResponse) -> None:
        self._request = request
        self._app = request.app
        self._services = request.app[SERVICES]
        self._reader = member_of(request)
        self._stream = stream
        self._visibility: LRUCache[str, bool] = LRUCache(MAX_SEEN_JOBS)  # job → shown here

    async def follow_jobs(self, subscription: Subscription) -> None:
        """Send the jobs as they are, then each event as it comes."""
        ordered = [view for view in await self._app[PAGE_JOBS].get() if not view.is_hidden_from(self._reader.id)]
        self._visibility.update(dict.fromkeys((view.id for view in ordered), True))
        await self._send("jobs", self._app[JOB_CACHE].encode_list(ordered, self._reader))
        async for job_event in subscription:
            if await self._forward_event(job_event):
                await subscription.rest(FRAME_PAUSE)

    async def _forward_event(self, job_event: JobEvent) -> bool:
        """Return True if a frame was sent: only frames come so often that they need a pace."""
        if job_event.job not in self._visibility or isinstance(job_event, JobEnded):
            await self._send_job(job_event.job)
        if not isinstance(job_event, JobEnded) and self._visibility.get(job_event.job):
            await write_event(self._request, self._stream, self._app[EVENT_CACHE].encode(job_event))
            return isinstance(job_event, JobProgress)
        return False

    async def _send_job(self, job: str) -> None:
        """Send the whole job when it is new to the page or over, or send that it was deleted.

        Of jobs of other servers and private jobs of others, not even the id is sent.
        """
        job_views = self._services.job_views
        try:
            view = await job_views.load_view(job)
        except UserError as error:
            if self._visibility.get(job) or await job_views.was_shown_to(job, GUILD, self._reader.id):
                await self._send("gone", msgspec.json.encode({"id": job, "reason": error.sentence}))
            return
        self._visibility[job] = view.guild == GUILD and not view.is_hidden_from(self._reader.id)
        if self._visibility[job]:
            await self._send("job", self._app[JOB_CACHE].encode(view, self._reader))

    async def watch_workers(self) -> None:
        """Send the live workers, at once and whenever they change."""
        last_state: answers.Workers | None = None
        while True:
            state = describe_workers(self._app)
            if state != last_state:
                await self._send("workers", msgspec.json.encode(state))
                last_state = state
            await asyncio.sleep(POLL_SECONDS)

    async def _send(self, event: str, json_text: bytes) -> None:
        await write_event(self._request, self._stream, format_event(event, json_text))


async def stream_job_events(request: web.Request) -> web.StreamResponse:
    """Stream one job: `queued` unless it is over, `loading` while its model loads, `frame` as it runs, and its end.

    The stream closes after the end.
    """
    services = request.app[SERVICES]
    view = await require_visible(request)
    if request.headers.get("Last-Event-ID") == END_EVENT_ID:
        return web.Response(status=204)  # this status stops an EventSource
    async with open_stream(request) as stream, services.feed.subscribe(view.id) as subscription:
        await race(_follow_job(request, stream, subscription), wait_for_disconnect(request), wait_for_sign_out(request))
    return stream


async def _follow_job(request: web.Request, stream: EventSourceResponse, subscription: Subscription) -> None:
    view = await require_visible(request)
    if is_end(view.state):
        return await _send_end(request, stream)
    payload = {
        "id": view.id,
        "state": view.state,
        "jobs_ahead": view.jobs_ahead or 0,
        "eta": view.eta,
        "startup_notice": view.startup_notice,
    }
    await write_event(request, stream, format_event("queued", msgspec.json.encode(payload)))
    async for job_event in subscription:
        if isinstance(job_event, JobEnded):
            return await _send_end(request, stream)
        await write_event(request, stream, request.app[EVENT_CACHE].encode(job_event))
        if isinstance(job_event, JobProgress):
            await subscription.rest(FRAME_PAUSE)


async def write_event(request: web.Request, stream: EventSourceResponse, event: bytes) -> None:
    """Send one event in its wire format. Most are bytes that all pages share.

    The library's `send` searches each text for line ends: with a hundred pages that took most of the bot's time. A
    client that reads nothing for too long is disconnected. Raise ConnectionError and TimeoutError.
    """
    try:
        async with asyncio.timeout(STALL_TIMEOUT + len(event) / SLOWEST_READ):
            await stream.write(event)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise


async def _send_end(request: web.Request, stream: EventSourceResponse) -> None:
    try:
        view = await require_visible(request)
    except UserError as error:  # deleted meanwhile
        payload = {"id": request.match_info["id"], "state": "deleted", "reason": error.sentence}
        return await write_event(request, stream, format_event("deleted", msgspec.json.encode(payload), END_EVENT_ID))
    job = request.app[JOB_CACHE].encode(view, member_of(request))
    await write_event(request, stream, format_event(view.state, job, END_EVENT_ID))


async def require_visible(request: web.Request, job: str = "") -> JobView:
    """Return the job in the address if this visitor may see it; a guest sees only the chatroom's. Refuse with 404.

    Only the author sees a private job: not even the operator does.
    """
    view = await request.app[SERVICES].job_views.load_view(job or request.match_info["id"])
    if (view.guild != GUILD and not request[VISITOR].is_operator) or view.is_hidden_from(member_of(request).id):
        raise UserError("There is no such job.", 404)
    return view


async def require_permitted(request: web.Request, action: Action, job: str = "") -> JobView:
    """Return the job in the address if this visitor may do `action` with it. Refuse with 404, or with 403.

    The operator sees the jobs of every server, but may continue only those of the chatroom.
    """
    view = await require_visible(request, job)
    if reason := forbidden_reason(action, member_of(request), job_ref(view)):
        raise UserError(reason, 403)
    return view


async def require_stoppable(request: web.Request, action: Action = "cancel") -> str:
    """Return the id of a job that this visitor may stop, visible or not: the operator may also stop private ones."""
    with contextlib.suppress(UserError):
        return (await require_visible(request)).id
    view = await request.app[SERVICES].job_views.load_view(request.match_info["id"])
    if forbidden_reason(action, member_of(request), job_ref(view)):
        raise UserError("There is no such job.", 404)
    return view.id


@contextlib.asynccontextmanager
async def open_stream(request: web.Request) -> AsyncGenerator[EventSourceResponse]:
    """Yield an event stream that counts against the limits. An error ends it, and the client reconnects."""
    streams = request.app[STREAMS]
    visitor = request[VISITOR].id
    visitor_streams = 0 if visitor == TERMINAL_ID else sum(reader == visitor for reader, _ in streams)
    if len(streams) >= MAX_STREAMS or visitor_streams >= MAX_VISITOR_STREAMS:
        raise UserError("Too many pages are open at once. Close one and try again.", 429)
    streams.add(entry := (visitor, object()))
    try:
        _limit_buffers(request)
        async with sse_response(
            request, send_timeout=STALL_TIMEOUT, ping_interval=10, allow_all_methods=True
        ) as stream:
            try:
                yield stream
            except DatabaseUnavailable as error:  # is a ConnectionError too
                log.warning("a live stream ended: %s", error)
            except (ConnectionError, TimeoutError):
                log.debug("a reader of a live stream went away")
            except Exception:
                log.exception("a live stream broke")
    finally:
        streams.discard(entry)


def _limit_buffers(request: web.Request) -> None:
    """Set small buffers: otherwise a slow client would see megabytes of old frames before a new one."""
    if request.transport is None:
        return
    request.transport.set_write_buffer_limits(high=SEND_BUFFER_BYTES)
    sock = request.transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


async def wait_for_disconnect(request: web.Request) -> None:
    """Return when the client has gone or the server closes."""
    while request.transport is not None and not request.transport.is_closing():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await request.app[SHUTDOWN].wait()
            return


async def wait_for_sign_out(request: web.Request) -> None:
    """Return when the visitor's session or key has ended; never for a visitor without one."""
    while True:
        await asyncio.sleep(SESSION_SECONDS)
        with contextlib.suppress(DatabaseUnavailable):  # nobody can know now
            if await is_signed_out(request):
                return


LiveEvent = QueueMoved | ModelLoading | JobProgress | JobSteered


def format_event(name: str, data: bytes, event_id: str = "") -> bytes:
    """Return an event in its wire format (HTML, 9.2.6: the event stream's format). `data` is JSON: no line ends."""
    id_line = f"id: {event_id}\r\n" if event_id else ""
    return f"{id_line}event: {name}\r\ndata: ".encode() + data + b"\r\n\r\n"


def serialize_event(job_event: LiveEvent) -> tuple[str, dict[str, Any]]:
    """Return the event's name and its value for JSON."""
    if isinstance(job_event, JobProgress):
        return "frame", serialize_frame(job_event)
    if isinstance(job_event, ModelLoading):
        return "loading", serialize_loading(job_event)
    if isinstance(job_event, JobSteered):
        return "steered", serialize_steered(job_event)
    payload = {"jobs_ahead": job_event.jobs_ahead, "eta": job_event.eta, "startup_notice": job_event.startup_notice}
    return "queued", {"id": job_event.job, "state": "queued", **payload}


def serialize_frame(job_event: JobProgress) -> dict[str, Any]:
    """Return live previews: image number → JPEG in base64, only the images that changed.

    The event holds the frames themselves. A frame is a few kilobytes; an address would cost another request on a
    browser's six connections, and the response could arrive after the picture is finished.
    """
    return {
        "id": job_event.job,
        "step": job_event.step,
        "total_steps": job_event.total_steps,
        "percent": texts.percent_done(job_event.step, job_event.total_steps),
        "seconds_left": job_event.seconds_left,
        "frames": {str(index + 1): base64.b64encode(jpeg).decode() for index, jpeg in sorted(job_event.frames.items())},
    }


def serialize_loading(job_event: ModelLoading) -> dict[str, Any]:
    """Return how far a model is loaded: percent, and the sentence for those who wait."""
    percent = texts.percent_done(round(job_event.loaded_share * 1000), 1000)
    sentence = texts.format_loading(job_event.model, job_event.loaded_share, job_event.model_bytes)
    return {"id": job_event.job, "model": job_event.model, "percent": percent, "sentence": sentence}


def serialize_steered(job_event: JobSteered) -> dict[str, Any]:
    """Return a change that was asked for, made or refused, and what holds now."""
    amendment = answers.describe_amendment(job_event.view)
    return {"id": job_event.job, "amendment": amendment, "steering": answers.describe_steering(job_event.recipe)}


TITLE = "Jobs"
STREAM = Shape(content=("text/event-stream",))
ROUTES = (
    Route("GET", "/api/events", stream_events, "stream", STREAM),
    Route("GET", "/api/jobs/{id}/events", stream_job_events, "stream", STREAM),
)
