"""Films from the ladders of a job's images, and the grid at one keyframe.

CPU-bound: async callers use a thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from bot.images.film_formats import Kind, check_kind
from bot.images.grid import CELL, scaled, sheet
from bot.images.pixels import Form, Unreadable, opened, resized, saved
from bot.images.reel import LIMIT, Reel, Size, bounded, fitted
from engine.job import MAX_COUNT, Ladder, Malformed, Rung, decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

MAX_FINAL = 1024  # pixels on the longer side of a finished picture in a film: four are in memory at once
MAX_THUMBNAIL = 1024 * 1024  # pixels


def film(
    ladders: Sequence[bytes], size: int = CELL, *, finals: Sequence[bytes] = (), kind: Kind = "webp",
    limit: int = LIMIT,
) -> bytes:  # fmt: skip
    """Return an animation of up to four images side by side, at most `limit` bytes; the last frame is held.

    `ladders`: encoded `engine.job.Ladder`, one per image, in any order. `size`: pixels of a cell's shorter side.
    `finals`: the finished pictures in the order of the images, shown as the last frame; a small model draws them larger
    than its keyframes. Raises `Unreadable` for what breaks the contract, `Refused` if this format cannot be made here
    (422) or even the smallest film does not fit (413).
    """
    check_kind(kind)
    return fitted(developing(ladders, size, finals=finals), kind, limit)


def developing(ladders: Sequence[bytes], size: int = CELL, *, finals: Sequence[bytes] = ()) -> Reel:
    """Return the frames of `film`. Raises `Unreadable`; drawing a frame may raise it, too."""
    read, ends = _read(ladders), [_final(one) for one in finals]
    last = max(map(len, read)) - 1

    def draw(place: int, at: Size) -> Image.Image:
        held = place == last and ends
        return resized(sheet(ends, size) if held else _grid(read, place, size), at)

    return Reel(last + 1, bounded(_grid(read, last, size).size), draw)


def bare(ladders: Sequence[bytes]) -> list[bytes]:
    """Return the ladders without latents, which are nearly all of their bytes. Raises `Unreadable`."""
    return [encode(_bare(ladder)) for ladder in _decoded(ladders)]


def _bare(ladder: Ladder) -> Ladder:
    rungs = (msgspec.structs.replace(rung, latent=None, history=None, estimate=None) for rung in ladder.rungs)
    return msgspec.structs.replace(ladder, rungs=tuple(rungs))


def steps(ladders: Sequence[bytes]) -> list[int]:
    """Return the step of each keyframe, for a slider; of the image with the most keyframes."""
    return [rung.step for rung in max(_read(ladders), key=len)]


def rung(ladders: Sequence[bytes], place: int, size: int = CELL, *, form: Form = "WEBP", quality: int = 85) -> bytes:
    """Return the grid at keyframe `place`, from 0; an image with fewer shows its last. Raises `IndexError`."""
    read = _read(ladders)
    if not 0 <= place < max(map(len, read)):
        raise IndexError(place)
    return saved(_grid(read, place, size), form, quality)


def _decoded(ladders: Sequence[bytes]) -> list[Ladder]:
    if not 1 <= len(ladders) <= MAX_COUNT:
        raise ValueError(f"a film has 1 to {MAX_COUNT} images, not {len(ladders)}")
    try:
        return sorted((decode(ladder, Ladder) for ladder in ladders), key=lambda ladder: ladder.image)
    except Malformed as error:
        raise Unreadable(f"not a ladder: {error}") from error


def _read(ladders: Sequence[bytes]) -> list[tuple[Rung, ...]]:
    read = _decoded(ladders)
    if not all(ladder.rungs for ladder in read):
        raise Unreadable("a ladder without rungs")
    return [tuple(sorted(ladder.rungs, key=lambda rung: rung.step)) for ladder in read]


def _final(picture: bytes) -> Image.Image:
    """Scale a picture down before the next is opened: four of 4096 pixels a side would take 200 MB."""
    pixels = opened(picture)
    return resized(pixels, scaled(*pixels.size, 1, MAX_FINAL))


def _grid(read: list[tuple[Rung, ...]], place: int, size: int) -> Image.Image:
    rungs = [rungs[min(place, len(rungs) - 1)] for rungs in read]
    return sheet([opened(one.thumbnail, MAX_THUMBNAIL) for one in rungs], size)
