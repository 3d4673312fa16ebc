"""The interpolation film: the pictures of a walk in order, cross-faded, to the end and back.

CPU-bound: async callers use a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from PIL import Image

from bot.images.films.animation import HOLD_MS, MAX_FILM_BYTES, Animation, Size, bound_size, encode_to_fit
from bot.images.films.formats import FilmFormat
from bot.images.image_codec import decode_image, resize_image

FRAMES_BETWEEN = 3  # frames from one picture to the next
MAX_SIDE = 512  # pixels of the longer side at most: a film has up to 91 frames, all in memory at once
MIN_SIDE = 256


def render_interpolation_film(
    pictures: Sequence[bytes], *, film_format: FilmFormat = "webp", limit: int = MAX_FILM_BYTES
) -> bytes:
    """Return two to sixteen pictures of one size as a looping film, at most `limit` bytes.

    The film pauses at both ends. Raises `UnreadableImage` for bytes that are no picture, and `ValueError` for fewer
    than two. Raises `UserError`: 422 if this machine cannot encode the format, 413 if even the smallest film does not
    fit.
    """
    return encode_to_fit(animate_walk(pictures), film_format, limit)


def animate_walk(pictures: Sequence[bytes]) -> Animation:
    """Return the frames of `render_interpolation_film`."""
    if len(pictures) < 2:
        raise ValueError("a walk has two pictures at least")
    tiles = [decode_image(picture) for picture in pictures]
    width, height = tiles[0].size
    scale = max(1.0, MIN_SIDE / min(width, height))
    size = bound_size((round(width * scale), round(height * scale)), MAX_SIDE)
    images = [resize_image(tile, size) for tile in tiles]
    last_position = (len(images) - 1) * FRAMES_BETWEEN

    @lru_cache(maxsize=1)
    def frame_at(position: int) -> Image.Image:
        picture_index, step = divmod(position, FRAMES_BETWEEN)
        if not step:
            return images[picture_index]
        return Image.blend(images[picture_index], images[picture_index + 1], step / FRAMES_BETWEEN)

    def draw(index: int, frame_size: Size) -> Image.Image:
        return resize_image(frame_at(last_position - abs(last_position - index)), frame_size)

    return Animation(2 * last_position + 1, size, draw, {last_position: HOLD_MS})
