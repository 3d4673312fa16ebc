"""The picture of a card: live preview grid, finished grid or upscaled picture, rendered off the event loop.

A finished picture is sent unchanged if it fits, else as lossless WebP, else as lossy, else not at all. Also wraps it
as a file of discord.py.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import discord
from cachetools import FIFOCache

from bot.discord.cards import job_cards
from bot.discord.cards.job_cards import Card
from bot.domain.errors import UserError
from bot.pictures import grid
from bot.pictures.image_codec import MAX_FRAME_PIXELS, UnreadableImage, decode_image, encode_image
from engine.contract import Recipe, UpscaleTask, list_final_images, list_lives

if TYPE_CHECKING:
    from PIL import Image

    from bot.domain.dto import JobView
    from bot.pictures.gallery import Gallery
    from bot.pictures.uploads.upload_decoder import UploadDecoder

log = logging.getLogger(__name__)
UPLOAD_LIMIT = 10 * 1024 * 1024  # bytes that every server accepts in one file
EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


@dataclass(frozen=True)
class PictureFile:
    """A file to attach to a message."""

    name: str
    payload: bytes


class PictureCache:
    """Cache of finished pictures that could not be sent yet. It drops the oldest when all together exceed `max_bytes`.

    An entry holds only for the same source pictures: a moderator may have hidden or shown one meanwhile.
    """

    def __init__(self, max_bytes: int = 32 * 1024 * 1024) -> None:
        self._entries: FIFOCache[str, tuple[int, int, PictureFile]] = FIFOCache(
            max_bytes, getsizeof=lambda entry: len(entry[2].payload)
        )

    @property
    def total_bytes(self) -> int:
        return int(self._entries.currsize)

    def get(self, job: str, pictures: Sequence[bytes], limit: int) -> PictureFile | None:
        """Return the cached picture if it was made from the same pictures for the same limit."""
        entry = self._entries.get(job)
        return entry[2] if entry and entry[:2] == (hash(tuple(pictures)), limit) else None

    def put(self, job: str, pictures: Sequence[bytes], limit: int, picture: PictureFile) -> None:
        """Keep the picture until `forget`, unless it exceeds `max_bytes` alone."""
        self.forget(job)
        if len(picture.payload) <= self._entries.maxsize:
            self._entries[job] = (hash(tuple(pictures)), limit, picture)

    def forget(self, job: str) -> None:
        """Drop the picture: it was sent, or never will be."""
        self._entries.pop(job, None)


async def render_preview(
    view: JobView, frames: Mapping[int, bytes], decoder: UploadDecoder | None = None
) -> PictureFile | None:
    """Return the newest frames as one small JPEG, with blank tiles for missing ones; None if there are none.

    `decoder`: decodes the frames in a sandbox first, since workers are other people's machines.
    """
    recipe = view.task
    if isinstance(recipe, UpscaleTask) or not frames:
        return None
    readable = await decoder.select_readable(frames, MAX_FRAME_PIXELS) if decoder else frames
    cells = [readable.get(index) for index in _list_shown_images(recipe, readable)]
    jpeg, unreadable = await asyncio.to_thread(_render_preview_grid, cells, (recipe.width, recipe.height))
    if unreadable := unreadable + len(frames) - len(readable):
        log.warning("job %s: %d of its frames cannot be read and are left out", view.id, unreadable)
    return PictureFile("developing.jpg", jpeg)


async def render_final(
    gallery: Gallery, view: JobView, limit: int = UPLOAD_LIMIT, cache: PictureCache | None = None
) -> tuple[Card, PictureFile | None]:
    """Return a job's final card and picture. If the picture is missing, the card says why."""
    card = job_cards.render_ended(view)
    try:
        picture = await render_picture(gallery, view, limit, cache)
    except (UserError, UnreadableImage) as error:
        log.warning("job %s: its picture cannot be shown: %s", view.id, error)
        return job_cards.note_missing(card), None
    return (job_cards.note_too_large(card) if picture is None and view.state == "finished" else card), picture


async def render_picture(
    gallery: Gallery, view: JobView, limit: int = UPLOAD_LIMIT, cache: PictureCache | None = None
) -> PictureFile | None:
    """Return a finished job's picture in at most `limit` bytes; None if it has none, or none that small.

    Raises `UserError` or `UnreadableImage` for pictures that are deleted or corrupt.
    """
    if view.state != "finished":
        return None
    if view.ends_interpolation and (film := await _render_interpolation(gallery, view, limit)):
        return film
    pictures = await gallery.read_all_for_members(view.id)
    if cache and (cached_picture := cache.get(view.id, pictures, limit)):
        return cached_picture
    result = await asyncio.to_thread(_encode_pictures, pictures, isinstance(view.task, Recipe), limit)
    if result is None:
        return None
    payload, file_format = result
    picture = PictureFile(f"darkroom-{view.id}.{EXTENSIONS[file_format]}", payload)
    if cache:
        cache.put(view.id, pictures, limit, picture)
    return picture


async def render_film(gallery: Gallery, view: JobView, limit: int) -> PictureFile | None:
    """Return the film of a finished job in at most `limit` bytes; None if it has none, or none that may be shown."""
    try:
        return PictureFile(f"darkroom-{view.id}-film.webp", await gallery.render_film(view.id, limit, "webp"))
    except (UserError, UnreadableImage) as error:
        log.info("job %s: no film of it: %s", view.id, error)
        return None


def to_discord_file(card: Card, picture: PictureFile) -> discord.File:
    """Return the file of a message that shows `card`."""
    return discord.File(io.BytesIO(picture.payload), picture.name, description=card.alt or None)


async def _render_interpolation(gallery: Gallery, view: JobView, limit: int) -> PictureFile | None:
    """Return the film of the interpolation that this job completes; None if too few of its frames may be shown."""
    try:
        return PictureFile(f"darkroom-{view.id}-walk.webp", await gallery.render_interpolation_film(view.id, limit))
    except UserError as error:
        log.info("job %s: no film of its walk: %s", view.id, error.sentence)
        return None


def _list_shown_images(recipe: Recipe, frames: Mapping[int, bytes]) -> list[int]:
    """Return the images that develop, and those of a split that the recipe does not know yet."""
    known = {life.image for life in list_lives(recipe)}
    return sorted({*list_final_images(recipe), *(image for image in frames if image not in known)})


def _render_preview_grid(cells: Sequence[bytes | None], shape: tuple[int, int]) -> tuple[bytes, int]:
    """Return the grid and the number of unreadable frames: workers are other people's machines."""
    tiles = [None if payload is None else _decode_frame(payload) for payload in cells]
    unreadable = sum(payload is not None for payload in cells) - sum(cell is not None for cell in tiles)
    return encode_image(grid.compose_images(tiles, shape=shape), "JPEG", 80), unreadable


def _decode_frame(payload: bytes) -> Image.Image | None:
    try:
        return decode_image(payload, MAX_FRAME_PIXELS)
    except UnreadableImage:
        return None


def _encode_pictures(pictures: Sequence[bytes], as_grid: bool, limit: int) -> tuple[bytes, grid.ImageFormat] | None:
    return grid.shrink_to_fit(grid.compose(pictures) if as_grid else pictures[0], limit)
