"""Films from the ladders of a job's images, and the grid at one keyframe.

CPU-bound: async callers use a thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from bot.images.films.animation import MAX_FILM_BYTES, Animation, Size, bound_size, encode_to_fit
from bot.images.films.captions import FilmCaption, add_captions
from bot.images.films.formats import FilmFormat, check_film_format
from bot.images.grid import CELL_SIZE, compose_images, scale_size
from bot.images.image_codec import ImageFormat, UnreadableImage, decode_image, encode_image, resize_image
from engine.contract import MAX_COUNT, Keyframe, Ladder, MalformedMessage, decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

MAX_FINAL_SIDE = 1024  # pixels on the longer side of a finished picture in a film: four are in memory at once
MAX_THUMBNAIL_PIXELS = 1024 * 1024  # pixels


def render_film(
    ladders: Sequence[bytes],
    size: int = CELL_SIZE,
    *,
    finals: Sequence[bytes] = (),
    film_format: FilmFormat = "webp",
    limit: int = MAX_FILM_BYTES,
    captions: Sequence[FilmCaption] = (),
) -> bytes:
    """Return an animation of up to four images side by side, at most `limit` bytes; the last frame is held.

    `ladders`: encoded `engine.contract.Ladder`, one per image, in any order. `size`: pixels of a cell's shorter side.
    `finals`: the finished pictures in the order of the images, shown as the last frame; a small model draws them larger
    than its keyframes. `captions`: by rising steps, each shown below the frames from its step on. Raises
    `UnreadableImage` for ladders that break the contract. Raises `UserError`: 422 if this machine cannot encode the
    format, 413 if even the smallest film does not fit.
    """
    check_film_format(film_format)
    return encode_to_fit(animate_ladders(ladders, size, finals=finals, captions=captions), film_format, limit)


def animate_ladders(
    ladders: Sequence[bytes],
    size: int = CELL_SIZE,
    *,
    finals: Sequence[bytes] = (),
    captions: Sequence[FilmCaption] = (),
) -> Animation:
    """Return the frames of `render_film`. Raises `UnreadableImage`; drawing a frame may raise it, too."""
    animation = _animate_keyframes(ladders, size, finals)
    return add_captions(animation, captions, *_read_scale(ladders)) if captions else animation


def _read_scale(ladders: Sequence[bytes]) -> tuple[list[int], int]:
    """Return the step of each frame, and the number of all steps."""
    return list_keyframe_steps(ladders), max(ladder.total_steps for ladder in _decode_ladders(ladders))


def _animate_keyframes(ladders: Sequence[bytes], size: int, finals: Sequence[bytes]) -> Animation:
    keyframes = _sorted_keyframes(ladders)
    final_images = [_open_final(picture) for picture in finals]
    last_index = max(map(len, keyframes)) - 1

    def draw(index: int, frame_size: Size) -> Image.Image:
        shows_final = index == last_index and final_images
        return resize_image(
            compose_images(final_images, size) if shows_final else _keyframe_grid(keyframes, index, size), frame_size
        )

    return Animation(last_index + 1, bound_size(_keyframe_grid(keyframes, last_index, size).size), draw)


def drop_latents(ladders: Sequence[bytes]) -> list[bytes]:
    """Return the ladders without latents, which are nearly all of their bytes. Raises `UnreadableImage`."""
    return [encode(_drop_ladder_latents(ladder)) for ladder in _decode_ladders(ladders)]


def _drop_ladder_latents(ladder: Ladder) -> Ladder:
    keyframes = (
        msgspec.structs.replace(keyframe, latent=None, history=None, estimate=None) for keyframe in ladder.keyframes
    )
    return msgspec.structs.replace(ladder, keyframes=tuple(keyframes))


def list_keyframe_steps(ladders: Sequence[bytes]) -> list[int]:
    """Return the step of each keyframe, for a slider; of the image with the most keyframes."""
    return [keyframe.step for keyframe in max(_sorted_keyframes(ladders), key=len)]


def render_keyframe(
    ladders: Sequence[bytes],
    index: int,
    size: int = CELL_SIZE,
    *,
    image_format: ImageFormat = "WEBP",
    quality: int = 85,
) -> bytes:
    """Return the grid at keyframe `index`, from 0; an image with fewer shows its last. Raises `IndexError`."""
    keyframes = _sorted_keyframes(ladders)
    if not 0 <= index < max(map(len, keyframes)):
        raise IndexError(index)
    return encode_image(_keyframe_grid(keyframes, index, size), image_format, quality)


def _decode_ladders(ladders: Sequence[bytes]) -> list[Ladder]:
    if not 1 <= len(ladders) <= MAX_COUNT:
        raise ValueError(f"a film has 1 to {MAX_COUNT} images, not {len(ladders)}")
    try:
        return sorted((decode(ladder, Ladder) for ladder in ladders), key=lambda ladder: ladder.image)
    except MalformedMessage as error:
        raise UnreadableImage(f"not a ladder: {error}") from error


def _sorted_keyframes(ladders: Sequence[bytes]) -> list[tuple[Keyframe, ...]]:
    decoded = _decode_ladders(ladders)
    if not all(ladder.keyframes for ladder in decoded):
        raise UnreadableImage("a ladder without keyframes")
    return [tuple(sorted(ladder.keyframes, key=lambda keyframe: keyframe.step)) for ladder in decoded]


def _open_final(picture: bytes) -> Image.Image:
    """Scale a picture down before the next is opened: four of 4096 pixels a side would take 200 MB."""
    pixels = decode_image(picture)
    return resize_image(pixels, scale_size(*pixels.size, 1, MAX_FINAL_SIDE))


def _keyframe_grid(keyframes: list[tuple[Keyframe, ...]], index: int, size: int) -> Image.Image:
    chosen = [ladder[min(index, len(ladder) - 1)] for ladder in keyframes]
    return compose_images([decode_image(keyframe.thumbnail, MAX_THUMBNAIL_PIXELS) for keyframe in chosen], size)
