"""Finished pictures, grids, films and keyframes as files. A file never changes once it is shown.

The job service has the bytes. Pictures count from 1, keyframes from 0.

Caches of pictures made of finished ones: a page and its visitors request the same ones again and again.

They bound how many are made at once and how much is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec
from aiohttp import web
from cachetools import LRUCache

from bot.domain.concurrency import run_in_thread
from bot.domain.dto import JobView
from bot.domain.errors import UserError
from bot.domain.job_states import is_end
from bot.pictures import grid
from bot.pictures.animation import FILM_FORMATS, MEDIA_TYPES, FilmFormat, parse_film_format
from bot.pictures.captions import FilmCaption
from bot.pictures.moderation_status import held_images
from bot.web.answers import job_url
from bot.web.middleware import member_of
from bot.web.routes import Route, Shape, answer_json
from bot.web.sse import SERVICES, require_permitted, require_visible
from engine.contract import MAX_COUNT

T = TypeVar("T")

MAX_CONCURRENT = 2  # each takes a core, and tens of megabytes of pixels
MAX_PICTURES = 48
MAX_BYTES = 64 * 1024 * 1024


class EncodedPictureCache:
    """An LRU cache. A key names a picture's sources and form, so an entry never changes."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._locks: WeakValueDictionary[tuple[str, ...], asyncio.Lock] = (
            WeakValueDictionary()
        )  # an entry lives while a request waits
        self._entries: LRUCache[tuple[str, ...], bytes] = LRUCache(MAX_BYTES, getsizeof=len)

    async def get(self, key: tuple[str, ...], make: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the picture of `key`; `make()` is called only on a miss."""
        if (entry := self._entries.get(key)) is not None:
            return entry
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock, self._slots:
            if (entry := self._entries.get(key)) is not None:  # another request made it meanwhile
                return entry
            payload = await make()
            self._store(key, payload)
            return payload

    def _store(self, key: tuple[str, ...], payload: bytes) -> None:
        if len(payload) <= MAX_BYTES:
            self._entries[key] = payload
        if len(self._entries) > MAX_PICTURES:
            self._entries.popitem()


class GridCache:
    """A cache of composed grids."""

    def __init__(self, cell: int) -> None:
        self._cell = cell
        self._cache = EncodedPictureCache()

    async def get(self, key: tuple[str, ...], load_pictures: Callable[[], Awaitable[Sequence[bytes]]]) -> bytes:
        """Return the grid of `key`; compose it from `load_pictures()`, which is called only on a miss."""

        async def compose() -> bytes:
            return await run_in_thread(partial(grid.compose, await load_pictures(), self._cell))

        return await self._cache.get(key, compose)


GRID_CACHE = web.AppKey("grid_cache", GridCache)
CACHE_FOREVER = "private, max-age=31536000, immutable"
NO_STORE = "no-store"  # while a picture of the job is held: grid and film will change
DISCONNECT_SECONDS = 0.1  # between two looks whether the client is still there
MIN_CELL = 512  # least pixels of the shorter side of a picture in the grid


class Keyframe(msgspec.Struct, frozen=True):
    """One keyframe of a film."""

    step: int
    url: str


class Keyframes(msgspec.Struct, frozen=True):
    """The keyframes of a film, and what was said at which step."""

    keyframes: list[Keyframe]
    captions: Sequence[FilmCaption]


async def get_picture(request: web.Request) -> web.Response:
    """Return one finished picture."""
    view = await require_visible(request)
    index = picture_index_of(request)
    return _file_response(
        await request.app[SERVICES].gallery.read_picture(view.id, index),
        "image/png",
        f"{view.id}-{index + 1}.png",
        view,
    )


async def get_grid(request: web.Request) -> web.Response:
    """Return the pictures of a job as a grid."""
    view = _require_finished(await require_visible(request))
    services = request.app[SERVICES]

    async def load_pictures() -> list[bytes]:
        return [await services.gallery.read_for_members(view.id, picture.index) for picture in view.pictures]

    held_indices = held_images(view)
    key = tuple(f"{picture.sha256}{' held' if picture.index in held_indices else ''}" for picture in view.pictures)
    payload = await wait_while_connected(request, request.app[GRID_CACHE].get(key, load_pictures))
    return _file_response(payload, "image/png", f"{view.id}.png", view)


async def get_film(request: web.Request) -> web.Response:
    """Return the film of a job."""
    view = _require_finished(await require_permitted(request, "film"))
    kind = parse_film_format(request.match_info["kind"])
    gallery = request.app[SERVICES].gallery
    payload = await _render_in_turn(request, partial(gallery.render_film, view.id, film_format=kind))
    return _file_response(payload, MEDIA_TYPES[kind], f"{view.id}.{kind}", view)


async def get_interpolation_film(request: web.Request) -> web.Response:
    """Return the film of an interpolation, there and back, of all its jobs.

    It is not cached: a moderator may still decide about a picture of another of its jobs.
    """
    view = _require_finished(await require_permitted(request, "film"))
    kind = parse_film_format(request.match_info["kind"])
    gallery = request.app[SERVICES].gallery
    payload = await _render_in_turn(request, partial(gallery.render_interpolation_film, view.id, film_format=kind))
    response = _file_response(payload, MEDIA_TYPES[kind], f"{view.id}-walk.{kind}", view)
    response.headers["Cache-Control"] = NO_STORE
    return response


async def get_dissolve_film(request: web.Request) -> web.Response:
    """Return a film of one picture as noise is added to it."""
    return await _render_picture_film(request, request.app[SERVICES].gallery.render_dissolve, "dissolving")


async def get_return_film(request: web.Request) -> web.Response:
    """Return a film of one picture as noise is added to it, then of how it was made."""
    return await _render_picture_film(request, request.app[SERVICES].gallery.render_dissolve_and_back, "there-and-back")


async def _render_picture_film(
    request: web.Request, render: Callable[[str, int, FilmFormat], Awaitable[bytes]], name: str
) -> web.Response:
    view = await require_permitted(request, "film")
    index = picture_index_of(request)
    kind = parse_film_format(request.match_info["kind"])
    payload = await _render_in_turn(request, partial(render, view.id, index, kind))
    return _file_response(payload, MEDIA_TYPES[kind], f"{view.id}-{index + 1}-{name}.{kind}", view)


async def list_keyframes(request: web.Request) -> web.Response:
    """Return the steps of the film's keyframes with the address of each, and what was said at which step."""
    view = _require_finished(await require_permitted(request, "film"))
    gallery = request.app[SERVICES].gallery
    steps = await gallery.keyframe_steps(view.id)
    captions = await gallery.list_captions(view.id)
    base = f"{job_url(view.id)}/keyframes"
    keyframes = [Keyframe(step, f"{base}/{n}.webp") for n, step in enumerate(steps)]
    return answer_json(Keyframes(keyframes, captions))


async def get_keyframe(request: web.Request) -> web.Response:
    """Return one keyframe of the film; the first is 0."""
    view = _require_finished(await require_permitted(request, "film"))
    number = _parse_number(request)
    rendering = request.app[SERVICES].gallery.render_keyframe_grid(view.id, number)
    payload = await wait_while_connected(request, rendering)
    return _file_response(payload, "image/webp", f"{view.id}-{number}.webp", view)


async def _render_in_turn(request: web.Request, render: Callable[[], Awaitable[bytes]]) -> bytes:
    """Return a film, rendered after this visitor's earlier ones. Refuse with 429 if too many wait."""

    async def render_in_turn() -> bytes:
        async with request.app[SERVICES].gallery.wait_turn(member_of(request).id):
            return await render()

    return await wait_while_connected(request, render_in_turn())


async def wait_while_connected(request: web.Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; drop the work once its client is gone."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("the client is gone")
            await asyncio.wait([task], timeout=DISCONNECT_SECONDS)
        return task.result()
    finally:
        task.cancel()


def _require_finished(view: JobView) -> JobView:
    if view.state == "finished":
        return view
    raise UserError(f"This job {'ended without a picture' if is_end(view.state) else 'is not finished yet'}.", 404)


async def find_picture(request: web.Request, name: str) -> tuple[str, int]:
    """Return the finished picture that `JOB/2` names, if this visitor may use it. Refuse with 400, 404 or 403."""
    job, _, number = name.partition("/")
    if number not in [str(index) for index in range(1, MAX_COUNT + 1)]:
        raise UserError("A picture is named by its job and its number, as in 01J…/2.", 400)
    return (await require_permitted(request, "vary", job)).id, int(number) - 1


def _parse_number(request: web.Request) -> int:
    text = request.match_info["n"]
    if not (text.isascii() and text.isdecimal() and len(text) <= 4):
        raise UserError("There is nothing with this number.", 404)
    return int(text)


def picture_index_of(request: web.Request) -> int:
    """Return the index of the picture in the address, counted from 0 as in the job service."""
    number = _parse_number(request)
    if not 1 <= number <= MAX_COUNT:
        raise UserError(f"Pictures are numbered from 1 to {MAX_COUNT}.", 404)
    return number - 1


def _file_response(content: bytes, kind: str, name: str, view: JobView) -> web.Response:
    cache_control = NO_STORE if held_images(view) else CACHE_FOREVER
    headers = {"Cache-Control": cache_control, "Content-Disposition": f'inline; filename="{name}"'}
    return web.Response(body=content, content_type=kind, headers=headers)


TITLE = "Results"
BASE = "/api/jobs/{id}"
KIND = f"{{kind:{'|'.join(FILM_FORMATS)}}}"
PNG = Shape(content=("image/png",))
FILM = Shape(content=tuple(MEDIA_TYPES[kind] for kind in FILM_FORMATS))
ROUTES = (
    Route("GET", f"{BASE}/pictures/{{n}}.png", get_picture, "file", PNG),
    Route("GET", f"{BASE}/grid.png", get_grid, "file", PNG),
    Route("GET", f"{BASE}/film.{KIND}", get_film, "film", FILM),
    Route("GET", f"{BASE}/walk.{KIND}", get_interpolation_film, "film", FILM),
    Route("GET", f"{BASE}/dissolve/{{n}}.{KIND}", get_dissolve_film, "film", FILM),
    Route("GET", f"{BASE}/round-trip/{{n}}.{KIND}", get_return_film, "film", FILM),
    Route("GET", f"{BASE}/keyframes", list_keyframes, "job", Shape(Keyframes)),
    Route("GET", f"{BASE}/keyframes/{{n}}.webp", get_keyframe, "file", Shape(content=("image/webp",))),
)
