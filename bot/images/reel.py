"""A film before it is a file: frames that are drawn when they are wanted, how long each is seen, and what fits a limit.

Knows frames, sizes and durations; knows nothing of ladders, jobs or how a format is written (`film_formats`).
"""

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
TURN_MS = 700  # where a film begins with a finished picture or turns round
LIMIT = 10 * 1024 * 1024  # what Discord takes in a server without boosts
MAX_SIDE = 1032  # pixels of a frame's longer side: two cells of 512 with the gap, and 150 MB for 48 frames

Size = tuple[int, int]

# What is tried, in order, until a film fits: take every n-th frame, size as a share, level of quality (0 is the best).
_TRIALS = (
    (1, 1.0, 0), (2, 1.0, 0), (3, 1.0, 0), (3, 0.75, 0), (3, 0.5, 0), (3, 0.5, 1), (3, 0.5, 2), (4, 0.25, 2),
    (6, 0.125, 2),
)  # fmt: skip


@dataclass(frozen=True)
class Reel:
    """`count` frames; `draw(place, size)` makes one, counted from 0, of exactly this size in pixels.

    `pauses`: places that no thinning takes away, and for how many milliseconds more each is seen. The last frame is
    always there and is held for `HOLD_MS`.
    """

    count: int
    size: Size
    draw: Callable[[int, Size], Image.Image]
    pauses: Mapping[int, int] = field(default_factory=dict[int, int])


def fitted(reel: Reel, kind: Kind = "webp", limit: int = LIMIT) -> bytes:
    """The reel as a file of at most `limit` bytes: with fewer frames, then smaller, then of lower quality.

    It lasts as long with fewer frames. The same reel gives the same bytes. Raises `Refused` (422) where this kind
    cannot be made here, (413) where even the smallest does not fit.
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
    """A GIF without dithering is up to half as large and nearly as good: that goes before its frames do."""
    if kind != "gif":
        return _TRIALS
    return _TRIALS[0], *((every, share, max(1, level)) for every, share, level in ((1, 1.0, 1), *_TRIALS[1:]))


def thinned(reel: Reel, every: int) -> list[int]:
    """Every n-th place, counted from the end, so that the last is always in it; and the pauses."""
    last = reel.count - 1
    return [place for place in range(reel.count) if (last - place) % every == 0 or place in reel.pauses]


def durations(reel: Reel, places: list[int]) -> list[int]:
    """Milliseconds of each frame: until the next that is kept; the first also stands for what was left out before."""
    starts = [0, *places[1:]]
    seen = [(after - place) * FRAME_MS for place, after in pairwise(starts)]
    return [ms + reel.pauses.get(place, 0) for place, ms in zip(places, seen, strict=False)] + [HOLD_MS]


def joined(first: Reel, second: Reel, pause: int = TURN_MS) -> Reel:
    """One after the other, at the second one's size; the end of the first is seen `pause` milliseconds longer."""

    def draw(place: int, size: Size) -> Image.Image:
        return first.draw(place, size) if place < first.count else second.draw(place - first.count, size)

    moved = {first.count + place: ms for place, ms in second.pauses.items()}
    return Reel(first.count + second.count, second.size, draw, {**first.pauses, first.count - 1: pause, **moved})


def bounded(size: Size, most: int = MAX_SIDE) -> Size:
    """A size of the same shape whose longer side is at most `most`."""
    return _shared(size, min(1.0, most / max(size)))


def _shared(size: Size, share: float) -> Size:
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))
