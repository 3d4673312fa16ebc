"""A job's thumbnail for a list: its pictures side by side, held ones blurred; made off the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bot.images import grid
from bot.images.pixels import Unreadable, opened, resized, saved
from bot.refused import Refused
from engine.job import Recipe

if TYPE_CHECKING:
    from bot.desk.studio import Studio
    from bot.views import View

log = logging.getLogger(__name__)

SIDE = 320  # pixels on the longer side: a phone shows it smaller


async def thumbnail(studio: Studio, view: View) -> bytes | None:
    """Return a JPEG, or None if there is nothing to show."""
    if view.state != "finished" or view.deleted is not None:
        return None
    try:
        pictures = [await studio.shown(view.id, shot.index) for shot in view.pictures]
        return await asyncio.to_thread(_small, pictures, isinstance(view.recipe, Recipe)) if pictures else None
    except (Refused, Unreadable) as error:
        log.warning("job %s: it has no thumbnail: %s", view.id, error)
        return None


def _small(pictures: Sequence[bytes], together: bool) -> bytes:
    whole = grid.sheet([opened(one) for one in pictures], SIDE // 2) if together else opened(pictures[0])
    share = min(1.0, SIDE / max(whole.size))
    size = (max(1, round(whole.width * share)), max(1, round(whole.height * share)))
    return saved(resized(whole, size), "JPEG", 82)
