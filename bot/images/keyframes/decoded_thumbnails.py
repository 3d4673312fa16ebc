"""Decoded keyframe thumbnails, which replace a ladder's thumbnails by a linear map.

CPU-bound: async callers use a thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from bot.images.image_codec import UnreadableImage
from engine.contract import Ladder, MalformedMessage, decode, encode


def read_estimates(ladder: bytes) -> tuple[bytes, ...]:
    """Return the estimate of each keyframe; empty if one has none, or if the bytes are no ladder."""
    try:
        keyframes = decode(ladder, Ladder).keyframes
    except MalformedMessage:
        return ()
    images = tuple(keyframe.estimate for keyframe in keyframes if keyframe.estimate)
    return images if len(images) == len(keyframes) else ()


def replace_thumbnails(ladder: bytes, thumbnails: Sequence[bytes]) -> bytes:
    """Return the ladder with these thumbnails, one per keyframe in order; stores nothing. Raises `UnreadableImage`."""
    try:
        decoded = decode(ladder, Ladder)
    except MalformedMessage as error:
        raise UnreadableImage(f"not a ladder: {error}") from error
    keyframes = (
        replace(keyframe, thumbnail=thumbnail)
        for keyframe, thumbnail in zip(decoded.keyframes, thumbnails, strict=True)
    )
    return encode(replace(decoded, keyframes=tuple(keyframes)))
