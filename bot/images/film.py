"""How a picture came to be: from the ladders of a job's images, a film of the whole grid, or the grid at one rung.

Knows ladders and pixels; knows nothing of jobs or where ladders are kept. CPU-heavy: async callers use a thread.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from bot.images.grid import CELL, scaled, sheet
from bot.images.pixels import Form, Unreadable, opened, resized, saved
from engine.job import MAX_COUNT, Ladder, Malformed, Rung, decode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL import Image

FRAME_MS = 90
HOLD_MS = 2500
LIMIT = 8 * 1024 * 1024
MAX_FINAL = 1024  # pixels on the longer side of a finished picture that is held beside three others
MAX_THUMBNAIL = 1024 * 1024  # pixels

# What is tried, in order, until a film fits: size of a cell as a share, WebP quality, take every n-th frame.
_TRIALS = ((1.0, 80, 1), (1.0, 60, 1), (0.75, 60, 1), (0.5, 50, 1), (0.5, 40, 2), (0.25, 30, 3))


class TooLarge(ValueError):
    """No film of these ladders fits the limit."""


def film(ladders: Sequence[bytes], size: int = CELL, *, finals: Sequence[bytes] = (), limit: int = LIMIT) -> bytes:
    """An animated WebP of up to four images developing side by side, at most `limit` bytes; the last frame is held.

    `ladders`: encoded `engine.job.Ladder`, one an image, in any order. `size`: pixels of a cell's shorter side.
    `finals`: the finished pictures in the order of the images, which a small model draws larger than its rungs: they
    are the frame that is held. Raises `Unreadable` for what is not what the contract says, `TooLarge` where even the
    smallest does not fit.
    """
    read, ends = _read(ladders), [_final(one) for one in finals]
    for share, quality, every in _TRIALS:
        cell = round(size * share)
        frames = list(_frames(read, cell, every))
        if ends:
            frames[-1] = resized(sheet(ends, cell), frames[-1].size)
        made = _animated(frames, quality)
        if len(made) <= limit:
            return made
    raise TooLarge(f"the film does not fit {limit} bytes")


def steps(ladders: Sequence[bytes]) -> list[int]:
    """The step at each rung, for a slider; that of the image with the most rungs."""
    return [rung.step for rung in max(_read(ladders), key=len)]


def rung(ladders: Sequence[bytes], place: int, size: int = CELL, *, form: Form = "WEBP", quality: int = 85) -> bytes:
    """The grid at rung `place` (0 is the first; an image with fewer rungs shows its last). Raises `IndexError`."""
    read = _read(ladders)
    if not 0 <= place < max(map(len, read)):
        raise IndexError(place)
    return saved(_grid(read, place, size), form, quality)


def _read(ladders: Sequence[bytes]) -> list[tuple[Rung, ...]]:
    if not 1 <= len(ladders) <= MAX_COUNT:
        raise ValueError(f"a film has 1 to {MAX_COUNT} images, not {len(ladders)}")
    try:
        read = sorted((decode(ladder, Ladder) for ladder in ladders), key=lambda ladder: ladder.image)
    except Malformed as error:
        raise Unreadable(f"not a ladder: {error}") from error
    if not all(ladder.rungs for ladder in read):
        raise Unreadable("a ladder without rungs")
    return [tuple(sorted(ladder.rungs, key=lambda rung: rung.step)) for ladder in read]


def _final(picture: bytes) -> Image.Image:
    """Made small before the next is opened: four of 4096 pixels a side would be 200 MB."""
    pixels = opened(picture)
    return resized(pixels, scaled(*pixels.size, 1, MAX_FINAL))


def _frames(read: list[tuple[Rung, ...]], size: int, every: int) -> Iterator[Image.Image]:
    last = max(map(len, read)) - 1
    for place in range(last + 1):
        if (last - place) % every == 0:  # counted from the end: the finished picture is always in it
            yield _grid(read, place, size)


def _grid(read: list[tuple[Rung, ...]], place: int, size: int) -> Image.Image:
    rungs = [rungs[min(place, len(rungs) - 1)] for rungs in read]
    return sheet([opened(one.thumbnail, MAX_THUMBNAIL) for one in rungs], size)


def _animated(frames: list[Image.Image], quality: int) -> bytes:
    out = io.BytesIO()
    durations = [FRAME_MS] * (len(frames) - 1) + [HOLD_MS]
    frames[0].save(
        out, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=quality, method=2
    )
    return out.getvalue()
