"""Validation of PNGs from an untrusted process, chunk by chunk: pixels and nothing else. Pure.

Follows the PNG specification (ISO/IEC 15948); decodes no pixel. CPU-bound: async callers use a thread.
"""

from __future__ import annotations

import struct
import zlib

from bot.images.image_codec import PNG_SIGNATURE

# colour types (11.2.2)
GREY = 0
RGB = 2
CHANNELS = {GREY: 1, RGB: 3}


class InvalidPng(ValueError):
    """Other chunks than IHDR, IDAT and IEND, or data that contradicts the header."""


def validate_png(png: bytes, max_side: int, colour_type: int) -> tuple[int, int]:
    """Return width and height of a valid PNG: 8 bits, not interlaced, that colour type, at most `max_side` pixels a
    side.

    Every checksum must be right, and the data must inflate to exactly its rows, each with a known filter. Raises
    `InvalidPng`.
    """
    (_, header), *data, (_, trailer) = _read_chunks(png)
    if len(header) != 13 or trailer:
        raise InvalidPng("a header has 13 bytes, an end none")
    width, height, *kind = struct.unpack(">IIBBBBB", header)
    if kind != [8, colour_type, 0, 0, 0] or not (1 <= width <= max_side and 1 <= height <= max_side):
        raise InvalidPng("another kind or size")
    stride = 1 + width * CHANNELS[colour_type]
    rows = _inflate(b"".join(body for _, body in data), stride * height)
    if max(rows[::stride]) > 4:
        raise InvalidPng("a row with an unknown filter")
    return width, height


def _read_chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    if not png.startswith(PNG_SIGNATURE):
        raise InvalidPng("no PNG")
    chunks = list[tuple[bytes, bytes]]()
    offset = len(PNG_SIGNATURE)
    while offset + 12 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, offset)
        body = png[offset + 8 : offset + 8 + length]
        (checksum,) = (
            struct.unpack_from(">I", png, offset + 8 + length) if offset + 12 + length <= len(png) else (None,)
        )
        if checksum != zlib.crc32(body, zlib.crc32(kind)):
            raise InvalidPng("a chunk that is cut or damaged")
        chunks.append((kind, body))
        offset += 12 + length
    kinds = [kind for kind, _ in chunks]
    if offset != len(png) or len(kinds) < 3 or kinds != [b"IHDR", *[b"IDAT"] * (len(kinds) - 2), b"IEND"]:
        raise InvalidPng("other chunks than a header, data and an end")
    return chunks


def _inflate(data: bytes, length: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        rows = stream.decompress(data, length + 1)
    except zlib.error as error:
        raise InvalidPng("damaged data") from error
    if len(rows) != length or not stream.eof or stream.unused_data:
        raise InvalidPng("not as much data as it has rows")
    return rows
