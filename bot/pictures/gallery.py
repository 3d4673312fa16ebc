"""Finished pictures of a job and the files made from them: films, keyframe grids, contact sheets, comparisons.

Each file is rendered once, on first request, off the event loop, and kept by its content: the last few in memory, more
on disk (`bot.pictures.film_cache`).

Films cost seconds of a core: a member renders one at a time, all together a few, and a bounded number wait. A member's
own requests wait for one another, so they delay nobody else's much.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from cachetools import LRUCache

from bot.domain.concurrency import run_in_thread
from bot.domain.errors import UserError
from bot.domain.job_states import is_end
from bot.pictures import ladder_film, ladder_keyframes
from bot.pictures.animation import IS_ABANDONED, MAX_FILM_BYTES, FilmFormat, check_film_format
from bot.pictures.captions import FilmCaption, list_recipe_captions
from bot.pictures.film_cache import FilmCache
from bot.pictures.image_codec import UnreadableImage, blur_picture
from bot.pictures.moderation_status import NO_FILM as HELD_FILM
from bot.pictures.moderation_status import hold_reason, is_held
from bot.pictures.picture_store import ContentMissing, PictureStore
from bot.pictures.thumbnail_decoder import (
    NO_THUMBNAILS,
    AsyncCache,
    DecodeLadder,
    ThumbnailDecoder,
    Thumbnails,
    apply_thumbnails,
)
from bot.store import Store, StoredPicture
from bot.store.jobs import queries
from bot.store.members import preferences
from bot.store.moderation import incidents
from bot.store.transitions.amendments import list_amendments
from engine.contract import Recipe

CACHED_LADDERS = 16  # jobs whose keyframe thumbnails, and pictures whose steps, stay in memory
CONCURRENT_GRIDS = 2  # keyframe grids drawn at once
NO_FILM = "There is no film of this job."
NO_WALK = "This job is no interpolation, so it has no such film."
WALK_UNFINISHED = "This interpolation is still running; its film follows the last picture."
NO_LADDER = "This picture has no keyframes to branch from."


class Gallery:
    """Every method raises `UserError`: 404 if there is nothing to show, 403 for held pictures."""

    def __init__(
        self,
        store: Store,
        pictures: PictureStore,
        decode: DecodeLadder | None = None,
        disk_cache: FilmCache | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._rendered = RenderedFiles(pictures, disk_cache)
        self._bare_ladders: AsyncCache[list[bytes]] = AsyncCache(CACHED_LADDERS)
        self._thumbnail_decoder = ThumbnailDecoder(store, self.read_file, decode)
        self._branch_steps: AsyncCache[tuple[int, ...]] = AsyncCache(CACHED_LADDERS)
        self._clock = clock
        self._grid_slots = asyncio.Semaphore(CONCURRENT_GRIDS)

    def wait_turn(self, member: str) -> AbstractAsyncContextManager[None]:
        """Wait for a member's earlier films: a front end renders a film for a member inside. Raises `UserError` (429)
        if too many wait.
        """
        return self._rendered.line.wait_turn(member)

    async def find_visible(self, job: str, index: int) -> StoredPicture:
        """Return the record of one finished image that may be shown, upscaled or varied."""
        stored, is_image_held = await self._find_image(job, index)
        if is_image_held:
            raise UserError(hold_reason(index, stored), 403)
        return stored

    async def toggle_favourite(self, job: str, index: int, member: str) -> bool:
        """Toggle a finished image as a favourite of a member's; return whether it is one now. Raises `UserError`."""
        await self.find_visible(job, index)
        return await self._store.write(preferences.toggle_favourite, member, job, index, self._clock())

    async def _find_image(self, job: str, index: int) -> tuple[StoredPicture, bool]:
        check, files = await self._store.query(incidents.load_pictures, job)
        for stored in files:
            if stored.kind == "image" and stored.image == index:
                return stored, is_held(check, stored)
        raise UserError("There is no such picture.", 404)

    async def read_picture(self, job: str, index: int) -> bytes:
        """Return one image as PNG."""
        return await self.read_file(await self.find_visible(job, index))

    async def read_for_members(self, job: str, index: int) -> bytes:
        """Return one image as every member may see it: blurred while it is held."""
        return await self._read_for_members(*await self._find_image(job, index))

    async def _read_for_members(self, stored: StoredPicture, blur: bool) -> bytes:
        content = await self.read_file(stored)
        try:
            return await asyncio.to_thread(blur_picture, content) if blur else content
        except UnreadableImage as error:
            raise UserError(PICTURE_GONE, 404) from error

    async def read_all_for_members(self, job: str) -> list[bytes]:
        """Return every finished image of a job, in order, each as `read_for_members` returns it."""
        check, files = await self._store.query(incidents.load_pictures, job)
        images = [stored for stored in files if stored.kind == "image"]
        return [await self._read_for_members(stored, is_held(check, stored)) for stored in images]

    async def read_unblurred(self, job: str, index: int) -> bytes:
        """Return one image unblurred, held or not: only for moderators who decide about it."""
        return await self.read_file((await self._find_image(job, index))[0])

    async def render_film(self, job: str, limit: int = MAX_FILM_BYTES, film_format: FilmFormat = "webp") -> bytes:
        """Return the job's film, at most `limit` bytes. Raises `UserError` (422) for a format that this machine cannot
        encode.
        """
        check_film_format(film_format)
        ladder_files, final_files = await self._film_parts(job)
        captions = await self.list_captions(job)
        count = len(ladder_files)

        def render(contents: Sequence[bytes], **options: Any) -> bytes:
            return ladder_film.render_film(contents[:count], finals=contents[count:], captions=captions, **options)

        thumbnails = await self._thumbnail_decoder.decode_thumbnails(job, ladder_files)
        return await self._rendered.get_or_render(
            _film_kind("film", film_format, limit, *(f"{caption.step} {caption.line}" for caption in captions)),
            [*ladder_files, *final_files],
            _bound_film(render, film_format, limit),
            NO_FILM,
            thumbnails,
            on_disk=not any(caption.speaker for caption in captions),  # a member may ask to be forgotten
        )

    async def list_captions(self, job: str) -> tuple[FilmCaption, ...]:
        """Return what was changed while a job developed, in order, and who said so, where it was said in this job."""
        said = await self._store.query(list_amendments, job)
        captions = (FilmCaption(each.step, each.text, each.member_name) for each in said if each.step is not None)
        if captions := tuple(sorted(captions, key=lambda caption: caption.step)):
            return captions
        record = await self._store.get_job(job)  # one that reproduces a steered job has the changes in its recipe alone
        return list_recipe_captions(record.task) if record and isinstance(record.task, Recipe) else ()

    async def render_interpolation_film(
        self, job: str, limit: int = MAX_FILM_BYTES, film_format: FilmFormat = "webp"
    ) -> bytes:
        """Return the film of all jobs of a walk, there and back, at most `limit` bytes; held pictures are left out."""
        check_film_format(film_format)
        render = _bound_film(ladder_film.render_interpolation_film, film_format, limit)
        kind = _film_kind("walk", film_format, limit)
        return await self._rendered.get_or_render(kind, await self._walk_images(job), render, PICTURE_GONE)

    async def _walk_images(self, job: str) -> list[StoredPicture]:
        visible_images: list[StoredPicture] = []
        for part in await self._store.query(queries.list_parts, job):
            if not is_end(part.state):
                raise UserError(WALK_UNFINISHED, 404)
            if part.deleted is None:
                check, files = await self._store.query(incidents.load_pictures, part.id)
                visible_images += [stored for stored in files if stored.kind == "image" and not is_held(check, stored)]
        if len(visible_images) < 2:
            raise UserError(NO_WALK, 404)
        return visible_images

    async def render_dissolve(
        self, job: str, index: int, film_format: FilmFormat = "webp", limit: int = MAX_FILM_BYTES
    ) -> bytes:
        """Return a film of one image dissolving into noise, at most `limit` bytes."""
        check_film_format(film_format)
        render = _bound_film(ladder_film.render_dissolve, film_format, limit)
        kind = _film_kind("dissolve", film_format, limit)
        return await self._rendered.get_or_render(kind, [await self.find_visible(job, index)], render, PICTURE_GONE)

    async def render_dissolve_and_back(
        self, job: str, index: int, film_format: FilmFormat = "webp", limit: int = MAX_FILM_BYTES
    ) -> bytes:
        """Return a film of one image dissolving into noise and forming again, at most `limit` bytes."""
        check_film_format(film_format)
        parts = [await self.find_visible(job, index), await self.find_ladder(job, index)]
        render = _bound_film(ladder_film.render_dissolve_and_back, film_format, limit)
        thumbnails = await self._thumbnail_decoder.decode_thumbnails(job, parts[1:])
        kind = _film_kind("there and back", film_format, limit)
        return await self._rendered.get_or_render(kind, parts, render, NO_FILM, thumbnails)

    async def branch_steps(self, job: str, index: int) -> tuple[int, ...]:
        """Return the steps at which an image can be branched, ascending; empty if its ladder keeps no latents."""
        stored = await self.find_ladder(job, index)

        async def make() -> tuple[int, ...]:
            return await asyncio.to_thread(ladder_keyframes.branch_steps, await self.read_file(stored))

        return await self._branch_steps.get_or_make((stored.sha256,), make)

    async def find_ladder(self, job: str, index: int) -> StoredPicture:
        """Return the ladder of one image that may be shown."""
        await self.find_visible(job, index)
        _, files = await self._store.query(incidents.load_pictures, job)
        for stored in files:
            if stored.kind == "ladder" and stored.image == index:
                return stored
        raise UserError(NO_LADDER, 404)

    async def read_file(self, stored: StoredPicture) -> bytes:
        """Return the bytes of a stored file."""
        return await self._rendered.read_file(stored)

    async def render_contact_sheet(self, job: str, index: int) -> bytes:
        """Return the keyframes that can be branched as a WebP contact sheet, each labelled with its step."""
        parts = [await self.find_ladder(job, index)]
        thumbnails = await self._thumbnail_decoder.decode_thumbnails(job, parts)
        return await self._rendered.get_or_render(
            ("sheet",),
            parts,
            lambda contents: ladder_film.make_contact_sheet(contents[0]),
            ladder_keyframes.UNREADABLE,
            thumbnails,
        )

    async def render_comparison(self, pictures: Sequence[tuple[str, int]], labels: Sequence[str]) -> bytes:
        """Return 2 to 4 images, by job and index, side by side with a label under each, as PNG."""
        if not 2 <= len(pictures) <= 4 or len(labels) != len(pictures):
            raise UserError("Two to four pictures can be compared.")
        parts = [await self.find_visible(job, index) for job, index in pictures]
        return await self._rendered.get_or_render(
            ("compared", *labels),
            parts,
            lambda contents: ladder_film.compose_side_by_side(contents, labels),
            PICTURE_GONE,
        )

    async def keyframe_steps(self, job: str) -> list[int]:
        """Return the step of each keyframe, for a slider."""
        try:
            return await asyncio.to_thread(ladder_film.list_keyframe_steps, await self._without_latents(job))
        except UnreadableImage as error:
            raise UserError(NO_FILM, 404) from error

    async def render_keyframe_grid(self, job: str, index: int) -> bytes:
        """Return the grid at keyframe `index`, as WebP."""
        try:
            ladders = await self._without_latents(job)
            async with self._grid_slots:
                return await run_in_thread(partial(ladder_film.render_keyframe, ladders, index))
        except (UnreadableImage, IndexError) as error:
            raise UserError("There is no such keyframe.", 404) from error

    async def _without_latents(self, job: str) -> list[bytes]:
        """Return the job's ladders without latents; read them once for all keyframes. Raises `UnreadableImage`."""
        parts, _ = await self._film_parts(job)
        thumbnails = await self._thumbnail_decoder.decode_thumbnails(job, parts)

        async def make() -> list[bytes]:
            contents = [await self.read_file(stored) for stored in parts]
            return await asyncio.to_thread(
                lambda: ladder_film.drop_latents(apply_thumbnails(parts, contents, thumbnails))
            )

        key = ("decoded" if thumbnails else "", *(stored.sha256 for stored in parts))
        return await self._bare_ladders.get_or_make(key, make)

    async def _film_parts(self, job: str) -> tuple[list[StoredPicture], list[StoredPicture]]:
        """Return the ladders of the images that may be shown, and these images if all are there."""
        check, files = await self._store.query(incidents.load_pictures, job)
        ladders = [stored for stored in files if stored.kind == "ladder"]
        if not ladders:
            raise UserError(NO_FILM, 404)
        held_images = {stored.image for stored in files if stored.kind == "image" and is_held(check, stored)}
        if not (visible_ladders := [stored for stored in ladders if stored.image not in held_images]):
            raise UserError(HELD_FILM, 403)
        visible_images = {stored.image for stored in visible_ladders}
        finals = [stored for stored in files if stored.kind == "image" and stored.image in visible_images]
        finals.sort(key=lambda stored: stored.image)
        return visible_ladders, finals if len(finals) == len(visible_ladders) else []


CACHED_FILES = 8  # files in memory; at most 10 MB each
PICTURE_GONE = "This picture is not kept any more."

Render = Callable[[Sequence[bytes]], bytes]  # the parts' contents → the file


def _bound_film(render: Callable[..., bytes], film_format: FilmFormat, limit: int) -> Render:
    """Return what renders a film of that format, of at most `limit` bytes, from the parts' contents."""
    return partial(render, film_format=film_format, limit=min(limit, MAX_FILM_BYTES))


def _film_kind(name: str, film_format: FilmFormat, limit: int, *more: str) -> tuple[str, ...]:
    """Return everything on which a film depends but the pictures in it."""
    return (name, film_format, str(min(limit, MAX_FILM_BYTES)), *more)


class RenderedFiles:
    """Belongs to the event loop. Without `disk_cache`, files are kept in memory only."""

    def __init__(self, pictures: PictureStore, disk_cache: FilmCache | None) -> None:
        self._pictures = pictures
        self._disk_cache = disk_cache
        self.line = RenderLine()
        self._memory_cache: LRUCache[tuple[str, ...], bytes] = LRUCache(CACHED_FILES)
        self._locks: WeakValueDictionary[tuple[str, ...], asyncio.Lock] = WeakValueDictionary()

    async def get_or_render(
        self,
        kind: tuple[str, ...],
        parts: Sequence[StoredPicture],
        render: Render,
        refusal: str,
        thumbnails: Mapping[str, Thumbnails] = NO_THUMBNAILS,
        *,
        on_disk: bool = True,
    ) -> bytes:
        """Return `render` of the parts' contents, or the kept result.

        `kind`: everything else on which the result depends. `refusal`: the sentence for the member if a part is
        unreadable. `thumbnails`: decoded thumbnails of ladders, by SHA-256. `on_disk`: also keep it on disk.
        """
        disk_cache = self._disk_cache if on_disk else None
        key = (*kind, "decoded" if thumbnails else "", *(stored.sha256 for stored in parts))
        if (file := self._memory_cache.get(key)) is not None:
            return file
        async with self._locks.setdefault(key, asyncio.Lock()):
            file = self._memory_cache.get(key)
            if file is None and disk_cache is not None:
                file = await disk_cache.get(key)
            if file is None:
                file = await self._render(parts, render, refusal, thumbnails)
                await self._keep(disk_cache, key, parts, file)
            self._memory_cache[key] = file
            return file

    async def _render(
        self, parts: Sequence[StoredPicture], render: Render, refusal: str, thumbnails: Mapping[str, Thumbnails]
    ) -> bytes:
        try:
            contents = [await self.read_file(stored) for stored in parts]
            return await self.line.render(lambda: render(apply_thumbnails(parts, contents, thumbnails)))
        except UnreadableImage as error:
            raise UserError(refusal, 404) from error

    async def _keep(
        self, disk_cache: FilmCache | None, key: tuple[str, ...], parts: Sequence[StoredPicture], file: bytes
    ) -> None:
        """Keep a file on disk, unless one of its pictures was deleted meanwhile."""
        if disk_cache is None:
            return
        hashes = {stored.sha256 for stored in parts}
        await disk_cache.put(key, hashes, file)
        await disk_cache.forget([sha256 for sha256 in hashes if not await self._pictures.has(sha256)])

    async def read_file(self, stored: StoredPicture) -> bytes:
        """Return the bytes of a stored file. Raises `UserError` (404)."""
        try:
            return await self._pictures.get(stored.sha256)
        except ContentMissing as error:
            raise UserError(PICTURE_GONE, 404) from error


T = TypeVar("T")

MAX_RUNNING = 2  # renderings at once: each takes a core, and up to 150 MB of pixels
# requests, running and waiting: of one member, and of all; a first one always fits
MAX_OF_MEMBER = 12
MAX_IN_LINE = 48
RETRY_SECONDS = 5.0  # by then a rendering or two are done
TOO_MANY_OF_MEMBER = f"{MAX_OF_MEMBER} films of yours are being made already. Try again when one is done."
LINE_FULL = "Too many films are being made just now. Try again in a few seconds."


class RenderLine:
    """Belongs to the event loop."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._slots = asyncio.Semaphore(MAX_RUNNING)
        self._requests: Counter[str] = Counter()  # by member
        self._member_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def wait_turn(self, member: str) -> AsyncGenerator[None]:
        """Run the body after all earlier requests of that member.

        Raises `UserError` (429) if the member, or all together, have too many requests.
        """
        own_requests = self._requests.get(member, 0)
        if own_requests >= MAX_OF_MEMBER or (own_requests and self._requests.total() >= MAX_IN_LINE):
            sentence = TOO_MANY_OF_MEMBER if own_requests >= MAX_OF_MEMBER else LINE_FULL
            raise UserError(sentence, 429, retry_at=self._clock() + RETRY_SECONDS)
        self._requests[member] += 1
        try:
            async with self._member_locks.setdefault(member, asyncio.Lock()):
                yield
        finally:
            self._requests[member] -= 1
            if not self._requests[member]:
                del self._requests[member]

    async def render(self, render: Callable[[], T]) -> T:
        """Return the result of `render`, which runs in a thread. A cancelled caller's rendering ends at its next frame,
        and only then frees its slot.
        """
        async with self._slots:
            abandoned = threading.Event()
            IS_ABANDONED.set(abandoned.is_set)  # the thread inherits it
            return await run_in_thread(render, abandoned.set)
