"""The picture that goes with a card: the live grid, the finished grid, the enlarged one; made off the event loop.

Finished pictures fit where they are shown: as they are, then as lossless WebP, then as lossy, else none. Knows the
studio and grids; knows nothing of messages.
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

UPLOAD = 10 * 1024 * 1024  # bytes that every server takes in one file
ENDING = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


@dataclass(frozen=True)
class Picture:
    """A file of a message."""

    name: str
    payload: bytes


class Kept:
    """Finals that were made and could not be sent yet; the oldest go where all are more than `most` bytes.

    What they were made of is compared: a moderator may have hidden or shown one of the pictures meanwhile.
    """

    def __init__(self, most: int = 32 * 1024 * 1024) -> None:
        self.bytes, self._most = 0, most
        self._made: OrderedDict[str, tuple[int, int, Picture]] = OrderedDict()

    def get(self, job: str, pictures: Sequence[bytes], limit: int) -> Picture | None:
        """What was made of the same pictures, if it is there."""
        known = self._made.get(job)
        return known[2] if known and known[:2] == (hash(tuple(pictures)), limit) else None

    def put(self, job: str, pictures: Sequence[bytes], limit: int, picture: Picture) -> None:
        """Until `forget`."""
        self.forget(job)
        self._made[job] = (hash(tuple(pictures)), limit, picture)
        self.bytes += len(picture.payload)
        while self.bytes > self._most:
            self.forget(next(iter(self._made)))

    def forget(self, job: str) -> None:
        """It was sent, or never will be."""
        if known := self._made.pop(job, None):
            self.bytes -= len(known[2].payload)


async def preview(view: View, frames: Mapping[int, bytes]) -> Picture | None:
    """The newest frames as one small JPEG, quiet tiles where none has come yet; None while there is nothing to show."""
    recipe = view.recipe
    if isinstance(recipe, Enlarge) or not frames:
        return None
    cells = [frames.get(index) for index in range(recipe.count)]
    made, unread = await asyncio.to_thread(_live, cells, (recipe.width, recipe.height))
    if unread:
        log.warning("job %s: %d of its frames cannot be read, and are left out", view.id, unread)
    return Picture("developing.jpg", made)


async def ending(
    studio: Studio, view: View, limit: int = UPLOAD, kept: Kept | None = None
) -> tuple[Card, Picture | None]:
    """The last card of a job and its picture; where there should be one and is none, the card says why."""
    card = presenter.ended(view)
    try:
        picture = await final(studio, view, limit, kept)
    except (Refused, Unreadable) as error:
        log.warning("job %s: its picture cannot be shown: %s", view.id, error)
        return presenter.unkept(card), None
    return (presenter.unshown(card) if picture is None and view.state == "finished" else card), picture


async def final(studio: Studio, view: View, limit: int = UPLOAD, kept: Kept | None = None) -> Picture | None:
    """What a finished job shows in at most `limit` bytes; None if it has nothing, or nothing that small.

    Raises `Refused` or `Unreadable` for pictures that are gone or spoilt.
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
    """That of the walk whose last pictures these are; None where too few of it may be shown."""
    try:
        return Picture(f"darkroom-{view.id}-walk.webp", await studio.walk(view.id, limit))
    except Refused as refused:
        log.info("job %s: no film of its walk: %s", view.id, refused.sentence)
        return None


def _live(cells: Sequence[bytes | None], shape: tuple[int, int]) -> tuple[bytes, int]:
    """The grid, and how many frames were none: who sends them is a machine of somebody else's."""
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
