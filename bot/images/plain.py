"""Validation of PNGs from an untrusted process, chunk by chunk: pixels and nothing else. Pure.

Follows the PNG specification (ISO/IEC 15948); decodes no pixel. CPU-bound: async callers use a thread.
"""

from __future__ import annotations

import struct
import zlib

from bot.images.pixels import PNG

GREY, RGB = 0, 2  # colour types (11.2.2)
CHANNELS = {GREY: 1, RGB: 3}


class NotPlain(ValueError):
    """Other chunks than IHDR, IDAT and IEND, or data that contradicts the header."""


def plain(png: bytes, most: int, colour: int) -> tuple[int, int]:
    """Return width and height of a valid PNG: 8 bits, not interlaced, that colour type, at most `most` pixels a side.

    Every checksum must be right, and the data must inflate to exactly its rows, each with a known filter. Raises
    `NotPlain`.
    """
    (_, head), *data, (_, end) = _chunks(png)
    if len(head) != 13 or end:
        raise NotPlain("a header has 13 bytes, an end none")
    width, height, *kind = struct.unpack(">IIBBBBB", head)
    if kind != [8, colour, 0, 0, 0] or not (1 <= width <= most and 1 <= height <= most):
        raise NotPlain("another kind or size")
    stride = 1 + width * CHANNELS[colour]
    rows = _inflated(b"".join(body for _, body in data), stride * height)
    if max(rows[::stride]) > 4:
        raise NotPlain("a row with an unknown filter")
    return width, height


def _chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    if not png.startswith(PNG):
        raise NotPlain("no PNG")
    found, at = list[tuple[bytes, bytes]](), len(PNG)
    while at + 12 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        body = png[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", png, at + 8 + length) if at + 12 + length <= len(png) else (None,)
        if checksum != zlib.crc32(body, zlib.crc32(kind)):
            raise NotPlain("a chunk that is cut or damaged")
        found.append((kind, body))
        at += 12 + length
    kinds = [kind for kind, _ in found]
    if at != len(png) or len(kinds) < 3 or kinds != [b"IHDR", *[b"IDAT"] * (len(kinds) - 2), b"IEND"]:
        raise NotPlain("other chunks than a header, data and an end")
    return found


def _inflated(data: bytes, length: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        rows = stream.decompress(data, length + 1)
    except zlib.error as error:
        raise NotPlain("damaged data") from error
    if len(rows) != length or not stream.eof or stream.unused_data:
        raise NotPlain("not as much data as it has rows")
    return rows
