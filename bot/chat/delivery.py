"""The picture of a card: live preview grid, finished grid or upscaled picture, made off the event loop.

A finished picture is sent unchanged if it fits, else as lossless WebP, else as lossy, else not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bot.chat import presenter
from bot.chat.presenter import Card
from bot.images import grid
from bot.images.blur import MAX_FRAME
from bot.images.pixels import Unreadable, opened, saved
from bot.refused import Refused
from engine.job import Enlarge, Recipe

if TYPE_CHECKING:
    from PIL import Image

    from bot.desk.studio import Studio
    from bot.views import View

log = logging.getLogger(__name__)

UPLOAD = 10 * 1024 * 1024  # bytes that every server accepts in one file
ENDING = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


@dataclass(frozen=True)
class Picture:
    """A file to attach to a message."""

    name: str
    payload: bytes


class Kept:
    """Cache of finished pictures that could not be sent yet. The oldest go where all exceed `most` bytes.

    An entry holds only for the same source pictures: a moderator may have hidden or shown one meanwhile.
    """

    def __init__(self, most: int = 32 * 1024 * 1024) -> None:
        self.bytes, self._most = 0, most
        self._made: OrderedDict[str, tuple[int, int, Picture]] = OrderedDict()

    def get(self, job: str, pictures: Sequence[bytes], limit: int) -> Picture | None:
        """Return the cached picture if it was made from the same pictures for the same limit."""
        known = self._made.get(job)
        return known[2] if known and known[:2] == (hash(tuple(pictures)), limit) else None

    def put(self, job: str, pictures: Sequence[bytes], limit: int, picture: Picture) -> None:
        """Keep the picture until `forget`."""
        self.forget(job)
        self._made[job] = (hash(tuple(pictures)), limit, picture)
        self.bytes += len(picture.payload)
        while self.bytes > self._most:
            self.forget(next(iter(self._made)))

    def forget(self, job: str) -> None:
        """Drop the picture: it was sent, or never will be."""
        if known := self._made.pop(job, None):
            self.bytes -= len(known[2].payload)


async def preview(view: View, frames: Mapping[int, bytes]) -> Picture | None:
    """Return the newest frames as one small JPEG, with blank tiles for missing ones; None if there are none."""
    recipe = view.recipe
    if isinstance(recipe, Enlarge) or not frames:
        return None
    cells = [frames.get(index) for index in range(recipe.count)]
    made, unread = await asyncio.to_thread(_live, cells, (recipe.width, recipe.height))
    if unread:
        log.warning("job %s: %d of its frames cannot be read and are left out", view.id, unread)
    return Picture("developing.jpg", made)


async def ending(
    studio: Studio, view: View, limit: int = UPLOAD, kept: Kept | None = None
) -> tuple[Card, Picture | None]:
    """Return a job's final card and picture. If the picture is missing, the card says why."""
    card = presenter.ended(view)
    try:
        picture = await final(studio, view, limit, kept)
    except (Refused, Unreadable) as error:
        log.warning("job %s: its picture cannot be shown: %s", view.id, error)
        return presenter.unkept(card), None
    return (presenter.unshown(card) if picture is None and view.state == "finished" else card), picture


async def final(studio: Studio, view: View, limit: int = UPLOAD, kept: Kept | None = None) -> Picture | None:
    """Return a finished job's picture in at most `limit` bytes; None if it has none, or none that small.

    Raises `Refused` or `Unreadable` for pictures that are deleted or corrupt.
    """
    if view.state != "finished":
        return None
    if view.walk and (film := await _film(studio, view, limit)):
        return film
    pictures = await studio.all_shown(view.id)
    if kept and (known := kept.get(view.id, pictures, limit)):
        return known
    made = await asyncio.to_thread(_made, pictures, isinstance(view.recipe, Recipe), limit)
    if made is None:
        return None
    payload, form = made
    picture = Picture(f"darkroom-{view.id}.{ENDING[form]}", payload)
    if kept:
        kept.put(view.id, pictures, limit, picture)
    return picture


async def _film(studio: Studio, view: View, limit: int) -> Picture | None:
    """Return the film of the interpolation that this job completes; None if too few of its frames may be shown."""
    try:
        return Picture(f"darkroom-{view.id}-walk.webp", await studio.walk(view.id, limit))
    except Refused as refused:
        log.info("job %s: no film of its walk: %s", view.id, refused.sentence)
        return None


def _live(cells: Sequence[bytes | None], shape: tuple[int, int]) -> tuple[bytes, int]:
    """Return the grid and the number of unreadable frames: workers are other people's machines."""
    tiles = [None if one is None else _frame(one) for one in cells]
    unread = sum(one is not None for one in cells) - sum(tile is not None for tile in tiles)
    return saved(grid.sheet(tiles, shape=shape), "JPEG", 80), unread


def _frame(payload: bytes) -> Image.Image | None:
    try:
        return opened(payload, MAX_FRAME)
    except Unreadable:
        return None


def _made(pictures: Sequence[bytes], together: bool, limit: int) -> tuple[bytes, grid.Form] | None:
    return grid.under(grid.compose(pictures) if together else pictures[0], limit)
