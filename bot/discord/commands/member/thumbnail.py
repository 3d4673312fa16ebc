"""A job's thumbnail for a list: its pictures side by side, held ones blurred; rendered off the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bot.domain.errors import UserError
from bot.pictures import grid
from bot.pictures.image_codec import UnreadableImage, decode_image, encode_image, resize_image
from engine.contract import Recipe

if TYPE_CHECKING:
    from bot.domain.dto import JobView
    from bot.pictures.gallery import Gallery

log = logging.getLogger(__name__)

MAX_SIDE = 320  # pixels on the longer side: a phone shows it smaller


async def render_thumbnail(gallery: Gallery, view: JobView) -> bytes | None:
    """Return a JPEG, or None if there is nothing to show."""
    if view.state != "finished" or view.deleted_at is not None:
        return None
    try:
        pictures = [await gallery.read_for_members(view.id, picture.index) for picture in view.pictures]
        return await asyncio.to_thread(_shrink, pictures, isinstance(view.task, Recipe)) if pictures else None
    except (UserError, UnreadableImage) as error:
        log.warning("job %s: it has no thumbnail: %s", view.id, error)
        return None


def _shrink(pictures: Sequence[bytes], as_grid: bool) -> bytes:
    image = (
        grid.compose_images([decode_image(payload) for payload in pictures], MAX_SIDE // 2)
        if as_grid
        else decode_image(pictures[0])
    )
    scale = min(1.0, MAX_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return encode_image(resize_image(image, size), "JPEG", 82)
