"""The interpolation film: the pictures of a walk in order, cross-faded, to the end and back.

CPU-bound: async callers use a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from PIL import Image

from bot.images.film_formats import Kind
from bot.images.pixels import opened, resized
from bot.images.reel import HOLD_MS, LIMIT, Reel, Size, bounded, fitted

BETWEEN = 3  # frames from one picture to the next
SIDE = 512  # pixels of the longer side at most: a film has up to 91 frames, all in memory at once
SMALLEST = 256


def walk(pictures: Sequence[bytes], *, kind: Kind = "webp", limit: int = LIMIT) -> bytes:
    """Return two to sixteen pictures of one size as a looping film, at most `limit` bytes.

    Both ends are held. Raises `Unreadable` for what is no picture, `Refused` if this format cannot be made here (422)
    or even the smallest does not fit (413), `ValueError` for fewer than two.
    """
    return fitted(walking(pictures), kind, limit)


def walking(pictures: Sequence[bytes]) -> Reel:
    """Return the frames of `walk`."""
    if len(pictures) < 2:
        raise ValueError("a walk has two pictures at least")
    tiles = [opened(one) for one in pictures]
    width, height = tiles[0].size
    grown = max(1.0, SMALLEST / min(width, height))
    size = bounded((round(width * grown), round(height * grown)), SIDE)
    stations = [resized(tile, size) for tile in tiles]
    last = (len(stations) - 1) * BETWEEN

    @lru_cache(maxsize=1)
    def at(place: int) -> Image.Image:
        station, part = divmod(place, BETWEEN)
        if not part:
            return stations[station]
        return Image.blend(stations[station], stations[station + 1], part / BETWEEN)

    def draw(place: int, wanted: Size) -> Image.Image:
        return resized(at(last - abs(last - place)), wanted)

    return Reel(2 * last + 1, size, draw, {last: HOLD_MS})
