"""Decoded keyframe thumbnails, which replace a ladder's thumbnails by a linear map.

CPU-bound: async callers use a thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from bot.images.film import MAX_THUMBNAIL
from bot.images.pixels import Unreadable, opened
from engine.job import Ladder, Malformed, decode, encode


def estimates(ladder: bytes) -> tuple[bytes, ...]:
    """Return the estimate of each keyframe; empty if one has none, or if the bytes are no ladder."""
    try:
        rungs = decode(ladder, Ladder).rungs
    except Malformed:
        return ()
    found = tuple(rung.estimate for rung in rungs if rung.estimate)
    return found if len(found) == len(rungs) else ()


def are_readable(thumbnails: Sequence[bytes]) -> bool:
    """Return whether all of them are pictures of bounded size."""
    try:
        return all(opened(one, MAX_THUMBNAIL) for one in thumbnails)
    except Unreadable:
        return False


def with_thumbnails(ladder: bytes, thumbnails: Sequence[bytes]) -> bytes:
    """Return the ladder with these thumbnails, one per keyframe in order; it is not stored. Raises `Unreadable`."""
    try:
        read = decode(ladder, Ladder)
    except Malformed as error:
        raise Unreadable(f"not a ladder: {error}") from error
    rungs = (replace(rung, thumbnail=one) for rung, one in zip(read.rungs, thumbnails, strict=True))
    return encode(replace(read, rungs=tuple(rungs)))
