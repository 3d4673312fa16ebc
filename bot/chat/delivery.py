"""The picture that goes with a card: the live grid, the finished grid, the enlarged one; made off the event loop.

Finished pictures fit where they are shown: as they are, then as lossless WebP, then as lossy, else none. Knows the
studio and grids; knows nothing of messages.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bot.chat import presenter
from bot.chat.presenter import Card
from bot.images import grid
from bot.images.pixels import Unreadable
from bot.refused import Refused
from engine.job import Enlarge, Recipe

if TYPE_CHECKING:
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


async def preview(view: View, frames: Mapping[int, bytes]) -> Picture | None:
    """The newest frames as one small JPEG, quiet tiles where none has come yet; None while there is nothing to show."""
    recipe = view.recipe
    if isinstance(recipe, Enlarge) or not frames:
        return None
    cells = [frames.get(index) for index in range(recipe.count)]
    return Picture("developing.jpg", await asyncio.to_thread(_live, cells, (recipe.width, recipe.height)))


async def ending(studio: Studio, view: View, limit: int = UPLOAD) -> tuple[Card, Picture | None]:
    """The last card of a job and its picture; where there should be one and is none, the card says why."""
    card = presenter.ended(view)
    try:
        picture = await final(studio, view, limit)
    except (Refused, Unreadable) as error:
        log.warning("job %s: its picture cannot be shown: %s", view.id, error)
        return presenter.unkept(card), None
    return (presenter.unshown(card) if picture is None and view.state == "finished" else card), picture


async def final(studio: Studio, view: View, limit: int = UPLOAD) -> Picture | None:
    """What a finished job shows in at most `limit` bytes; None if it has nothing, or nothing that small.

    Raises `Refused` or `Unreadable` for pictures that are gone or spoilt.
    """
    if view.state != "finished":
        return None
    pictures = await studio.all_shown(view.id)
    made = await asyncio.to_thread(_made, pictures, isinstance(view.recipe, Recipe), limit)
    if made is None:
        return None
    payload, form = made
    return Picture(f"darkroom-{view.id}.{ENDING[form]}", payload)


def _live(cells: Sequence[bytes | None], shape: tuple[int, int]) -> bytes:
    return grid.compose(cells, form="JPEG", quality=80, shape=shape)


def _made(pictures: Sequence[bytes], together: bool, limit: int) -> tuple[bytes, grid.Form] | None:
    return grid.under(grid.compose(pictures) if together else pictures[0], limit)
