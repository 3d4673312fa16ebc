"""Files made from pictures: films, contact sheets, comparisons. Each is rendered once and kept, by its content.

The last few stay in memory, more on disk (`bot.images.film_cache`). Renderings wait in `bot.images.render_line`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from weakref import WeakValueDictionary

from cachetools import LRUCache

from bot.domain.errors import UserError
from bot.images.film_cache import FilmCache
from bot.images.image_codec import UnreadableImage
from bot.images.keyframes.thumbnail_decoder import NO_THUMBNAILS, Thumbnails, apply_thumbnails
from bot.images.picture_store import ContentMissing, PictureStore
from bot.images.render_line import RenderLine
from bot.store import StoredPicture

CACHED_FILES = 8  # files in memory; at most 10 MB each
PICTURE_GONE = "This picture is not kept any more."

Render = Callable[[Sequence[bytes]], bytes]  # the parts' contents → the file


class RenderedFiles:
    """Belongs to the event loop. Without `disk_cache`, files are kept in memory only."""

    def __init__(self, pictures: PictureStore, disk_cache: FilmCache | None) -> None:
        self._pictures = pictures
        self._disk_cache = disk_cache
        self._line = RenderLine()
        self._memory_cache: LRUCache[tuple[str, ...], bytes] = LRUCache(CACHED_FILES)
        self._locks: WeakValueDictionary[tuple[str, ...], asyncio.Lock] = WeakValueDictionary()

    def wait_turn(self, member: str) -> AbstractAsyncContextManager[None]:
        """Wait for a member's earlier requests. Raises `UserError` (429)."""
        return self._line.wait_turn(member)

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
            return await self._line.render(lambda: render(apply_thumbnails(parts, contents, thumbnails)))
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
