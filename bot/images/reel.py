"""Frames of an animation before encoding: drawn on demand, with durations, and reduced until they fit a size limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from bot.images.film_formats import Kind, check_kind, encoded
from bot.refused import Refused

if TYPE_CHECKING:
    from PIL import Image

FRAME_MS = 90
HOLD_MS = 2500
TURN_MS = 700  # where a film begins with a finished picture or reverses
LIMIT = 10 * 1024 * 1024  # Discord's upload limit in a server without boosts
MAX_SIDE = 1032  # pixels of a frame's longer side: two cells of 512 with the gap, and 150 MB for 48 frames

Size = tuple[int, int]

# Attempts, in order, until a film fits: every n-th frame, size as a share, quality level (0 is the best).
_TRIALS = (
    (1, 1.0, 0), (2, 1.0, 0), (3, 1.0, 0), (3, 0.75, 0), (3, 0.5, 0), (3, 0.5, 1), (3, 0.5, 2), (4, 0.25, 2),
    (6, 0.125, 2),
)  # fmt: skip


@dataclass(frozen=True)
class Reel:
    """`count` frames; `draw(place, size)` draws one, counted from 0, of exactly this size in pixels.

    `pauses`: frames that are never left out, and how many milliseconds longer each is shown. The last frame always
    stays and is shown for `HOLD_MS`.
    """

    count: int
    size: Size
    draw: Callable[[int, Size], Image.Image]
    pauses: Mapping[int, int] = field(default_factory=dict[int, int])


def fitted(reel: Reel, kind: Kind = "webp", limit: int = LIMIT) -> bytes:
    """Encode the frames in at most `limit` bytes: with fewer frames, then smaller, then at lower quality.

    The film lasts as long with fewer frames. The same frames give the same bytes. Raises `Refused` (422) if this format
    cannot be made here, (413) if even the smallest does not fit.
    """
    check_kind(kind)
    for every, share, level in _trials(kind):
        places = thinned(reel, every)
        size = _shared(reel.size, share)
        frames = [reel.draw(place, size) for place in places]
        made = encoded(frames, durations(reel, places), kind, level)
        if len(made) <= limit:
            return made
    raise Refused("This film is too large to be shown here, even at its smallest.", 413)


def _trials(kind: Kind) -> Sequence[tuple[int, float, int]]:
    """Return the attempts. A GIF without dithering is nearly as good and up to half as large: that is tried early."""
    if kind != "gif":
        return _TRIALS
    return _TRIALS[0], *((every, share, max(1, level)) for every, share, level in ((1, 1.0, 1), *_TRIALS[1:]))


def thinned(reel: Reel, every: int) -> list[int]:
    """Return every n-th frame, counted from the end, so that the last is always there; and the pauses."""
    last = reel.count - 1
    return [place for place in range(reel.count) if (last - place) % every == 0 or place in reel.pauses]


def durations(reel: Reel, places: list[int]) -> list[int]:
    """Return each frame's milliseconds: until the next one. The first also covers the frames left out before it."""
    starts = [0, *places[1:]]
    seen = [(after - place) * FRAME_MS for place, after in pairwise(starts)]
    return [ms + reel.pauses.get(place, 0) for place, ms in zip(places, seen, strict=False)] + [HOLD_MS]


def joined(first: Reel, second: Reel, pause: int = TURN_MS) -> Reel:
    """Join two animations at the second one's size; the first one's end is shown `pause` milliseconds longer."""

    def draw(place: int, size: Size) -> Image.Image:
        return first.draw(place, size) if place < first.count else second.draw(place - first.count, size)

    moved = {first.count + place: ms for place, ms in second.pauses.items()}
    return Reel(first.count + second.count, second.size, draw, {**first.pauses, first.count - 1: pause, **moved})


def bounded(size: Size, most: int = MAX_SIDE) -> Size:
    """Return a size of the same shape whose longer side is at most `most`."""
    return _shared(size, min(1.0, most / max(size)))


def _shared(size: Size, share: float) -> Size:
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))
