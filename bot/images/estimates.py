"""What a ladder's rungs look like when they are decoded, in place of their thumbnails by a linear map.

Knows ladders and pixels; knows nothing of who decodes. CPU-heavy: async callers use a thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from bot.images.film import MAX_THUMBNAIL
from bot.images.pixels import Unreadable, opened
from engine.job import Ladder, Malformed, decode, encode


def estimates(ladder: bytes) -> tuple[bytes, ...]:
    """The estimate of each rung; empty where one has none, or for what is no ladder."""
    try:
        rungs = decode(ladder, Ladder).rungs
    except Malformed:
        return ()
    found = tuple(rung.estimate for rung in rungs if rung.estimate)
    return found if len(found) == len(rungs) else ()


def are_readable(thumbnails: Sequence[bytes]) -> bool:
    """Whether all of them are pictures of bounded size."""
    try:
        return all(opened(one, MAX_THUMBNAIL) for one in thumbnails)
    except Unreadable:
        return False


def with_thumbnails(ladder: bytes, thumbnails: Sequence[bytes]) -> bytes:
    """The ladder with these, one a rung in their order; nobody keeps it. Raises `Unreadable`."""
    try:
        read = decode(ladder, Ladder)
    except Malformed as error:
        raise Unreadable(f"not a ladder: {error}") from error
    rungs = (replace(rung, thumbnail=one) for rung, one in zip(read.rungs, thumbnails, strict=True))
    return encode(replace(read, rungs=tuple(rungs)))
