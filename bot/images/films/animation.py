"""Frames of an animation before encoding: drawn on demand, with durations. The encoder reduces them until they fit a
size limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from bot.domain.errors import UserError
from bot.images.films.formats import FilmFormat, check_film_format, encode_frames

if TYPE_CHECKING:
    from PIL import Image

FRAME_MS = 90
HOLD_MS = 2500
TURN_MS = 700  # where a film begins with a finished picture or reverses
MAX_FILM_BYTES = 10 * 1024 * 1024  # Discord's upload limit in a server without boosts
MAX_SIDE = 1032  # pixels of a frame's longer side: two cells of 512 with the gap, and 150 MB for 48 frames

Size = tuple[int, int]

IS_ABANDONED: ContextVar[Callable[[], bool]] = ContextVar("is_abandoned", default=lambda: False)  # nobody waits for it


class RenderingAbandoned(Exception):
    """Nobody waits for this film any more."""


# Attempts, in order, until a film fits: every n-th frame, size as a share, quality level (0 is the best).
_ATTEMPTS = (
    (1, 1.0, 0), (2, 1.0, 0), (3, 1.0, 0), (3, 0.75, 0), (3, 0.5, 0), (3, 0.5, 1), (3, 0.5, 2), (4, 0.25, 2),
    (6, 0.125, 2),
)  # fmt: skip


@dataclass(frozen=True)
class Animation:
    """`count` frames; `draw(index, size)` draws one, counted from 0, of exactly this size in pixels.

    `pauses`: frames that are never left out, and how many milliseconds longer each is shown. The last frame always
    stays and is shown for `HOLD_MS`.
    """

    count: int
    size: Size
    draw: Callable[[int, Size], Image.Image]
    pauses: Mapping[int, int] = field(default_factory=dict[int, int])


def encode_to_fit(animation: Animation, film_format: FilmFormat = "webp", limit: int = MAX_FILM_BYTES) -> bytes:
    """Encode the frames in at most `limit` bytes: with fewer frames, then smaller, then at lower quality.

    The film lasts as long with fewer frames. The same frames give the same bytes. Raises `UserError`: 422 if this
    machine cannot encode the format, 413 if even the smallest film does not fit.
    """
    check_film_format(film_format)
    for stride, scale, level in _attempts(film_format):
        indices = select_frames(animation, stride)
        size = _scale_size(animation.size, scale)
        frames = [_draw_wanted(animation, index, size) for index in indices]
        content = encode_frames(frames, frame_durations(animation, indices), film_format, level)
        if len(content) <= limit:
            return content
    raise UserError("This film is too large to be shown here, even at its smallest.", 413)


def _draw_wanted(animation: Animation, index: int, size: Size) -> Image.Image:
    """Draw one frame. Raises `RenderingAbandoned`."""
    if IS_ABANDONED.get()():
        raise RenderingAbandoned
    return animation.draw(index, size)


def _attempts(film_format: FilmFormat) -> Sequence[tuple[int, float, int]]:
    """Return the attempts. A GIF without dithering is nearly as good and up to half as large: so try that early."""
    if film_format != "gif":
        return _ATTEMPTS
    return _ATTEMPTS[0], *((stride, scale, max(1, level)) for stride, scale, level in ((1, 1.0, 1), *_ATTEMPTS[1:]))


def select_frames(animation: Animation, stride: int) -> list[int]:
    """Return every n-th frame, counted from the end, so that the last is always there; and the pauses."""
    last = animation.count - 1
    return [index for index in range(animation.count) if (last - index) % stride == 0 or index in animation.pauses]


def frame_durations(animation: Animation, indices: list[int]) -> list[int]:
    """Return each frame's milliseconds: until the next one. The first also covers the frames left out before it."""
    starts = [0, *indices[1:]]
    spans = [(next_index - index) * FRAME_MS for index, next_index in pairwise(starts)]
    return [ms + animation.pauses.get(index, 0) for index, ms in zip(indices, spans, strict=False)] + [HOLD_MS]


def join_animations(first: Animation, second: Animation, pause: int = TURN_MS) -> Animation:
    """Join two animations at the second one's size; the first one's end is shown `pause` milliseconds longer."""

    def draw(index: int, size: Size) -> Image.Image:
        return first.draw(index, size) if index < first.count else second.draw(index - first.count, size)

    shifted_pauses = {first.count + index: ms for index, ms in second.pauses.items()}
    return Animation(
        first.count + second.count, second.size, draw, {**first.pauses, first.count - 1: pause, **shifted_pauses}
    )


def bound_size(size: Size, max_side: int = MAX_SIDE) -> Size:
    """Return a size of the same shape whose longer side is at most `max_side`."""
    return _scale_size(size, min(1.0, max_side / max(size)))


def _scale_size(size: Size, scale: float) -> Size:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
