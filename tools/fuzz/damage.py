"""Damage to a picture before its upload: small damage, lies in its header, bombs, two formats in one file.

Pure: `rng` decides. Each kind returns bytes of a few MiB at most.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache

from tools.fuzz.seeds import Seed

Damage = Callable[[random.Random, Sequence[Seed]], bytes]
MAGIC_BYTES = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    b"GIF89a",
    b"RIFF\xff\xff\0\0WEBP",
    b"\0\0\0\x1cftypavif",
)
CHUNK_PREFIXES = {
    b"zTXt": b"a\0\0",
    b"iCCP": b"a\0\0",
    b"iTXt": b"a\0\1\0\0\0",
    b"eXIf": b"",
}  # chunk type → the bytes before its deflated data
NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def flip_bits(rng: random.Random, seeds: Sequence[Seed]) -> bytes:
    """Flip one to 64 bits."""
    data = bytearray(rng.choice(seeds).content)
    for _ in range(2 ** rng.randrange(7)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def falsify_numbers(rng: random.Random, seeds: Sequence[Seed]) -> bytes:
    """Falsify lengths, sizes or offsets, in either byte order; more often near the beginning."""
    data = bytearray(rng.choice(seeds).content)
    for _ in range(rng.randint(1, 3)):
        width = rng.choice((1, 2, 4))
        order = rng.choice(("big", "little"))
        offset = rng.randrange(max(1, min(len(data), rng.choice((64, 256, 1 << 20))) - width))
        value = rng.choice(NUMBERS) % (1 << 8 * width)
        data[offset : offset + width] = value.to_bytes(width, order)
    return bytes(data)


def cut_bytes(rng: random.Random, seeds: Sequence[Seed]) -> bytes:
    """End the file early, or leave out a part in the middle."""
    data = rng.choice(seeds).content
    one, other = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:one] if rng.random() < 0.6 else data[:one] + data[other:]


def splice_files(rng: random.Random, seeds: Sequence[Seed]) -> bytes:
    """Put a piece of one file into, or over, another."""
    target = rng.choice(seeds).content
    source = rng.choice(seeds).content
    start = rng.randrange(len(source))
    fragment = source[start : start + rng.randint(1, 400)]
    offset = rng.randrange(len(target))
    return target[:offset] + fragment + target[offset + (len(fragment) if rng.random() < 0.5 else 0) :]


def repeat_fragment(rng: random.Random, seeds: Sequence[Seed]) -> bytes:
    """Repeat a piece up to thousands of times: frames, scans, segments."""
    data = rng.choice(seeds).content
    start = rng.randrange(len(data))
    fragment = data[start : start + rng.randint(1, 300)]
    offset = start + len(fragment)
    return data[:offset] + fragment * rng.choice((2, 50, 5000)) + data[offset:]


def damage_chunks(rng: random.Random, seeds: Sequence[Seed]) -> bytes:
    """A PNG whose chunks are in another order, doubled, left out, or bitten, with checksums that are right."""
    parts = _split_chunks(rng.choice([one for one in seeds if one.name.startswith("PNG")]).content)
    for _ in range(rng.randint(1, 4)):
        offset = rng.randrange(len(parts))
        method = rng.randrange(4)
        if method == 0:
            parts.insert(rng.randrange(len(parts)), parts[offset])
        elif method == 1 and len(parts) > 1:
            del parts[offset]
        elif method == 2:
            parts[offset] = (rng.choice(parts)[0], parts[offset][1])
        elif parts[offset][1]:
            body = bytearray(parts[offset][1])
            body[rng.randrange(len(body))] = rng.choice((0, 1, 255, rng.randrange(256)))
            parts[offset] = (parts[offset][0], bytes(body))
    return MAGIC_BYTES[0] + b"".join(pack_chunk(kind, body) for kind, body in parts)


def make_bomb(rng: random.Random, seeds: Sequence[Seed]) -> bytes:
    """Data that inflates to up to 256 MiB, as pixels, text, profile; and pictures that say they are enormous."""
    side = rng.choice((0, 1, 10, 2000, 6000, 16_384, 30_000, 65_535, 2**31 - 1))
    other = rng.choice((1, 10, 2000, 6000, 30_000))
    depth, colour = rng.choice(((1, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 3), (8, 4), (8, 6), (16, 6), (7, 9)))
    head = struct.pack(">IIBBBBB", side, other, depth, colour, 0, 0, rng.choice((0, 0, 0, 1)))
    zeros = deflate_zeros(rng.choice((20, 24, 28)))
    parts = list[bytes]()
    if rng.random() < 0.5:
        kind, before = rng.choice(((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"eXIf", b"")))
        parts = [pack_chunk(kind, before + (zeros if before else bytes(99)))] * rng.choice((1, 1, 3))
    palette = [pack_chunk(b"PLTE", bytes(9))] if colour == 3 else []
    return MAGIC_BYTES[0] + b"".join(
        (pack_chunk(b"IHDR", head), *parts, *palette, pack_chunk(b"IDAT", zeros), pack_chunk(b"IEND", b""))
    )


def make_exif_loop(rng: random.Random, seeds: Sequence[Seed]) -> bytes:
    """EXIF whose directories name themselves and each other, with counts and offsets that lie."""
    order = rng.choice(("<", ">"))
    tags = (0x0112, 0x8769, 0x8825, 0xA005, 0x014A, 0x9286, 0x927C, 0xB000, 0xB001, 0xB002, 0x02BC)
    body = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    for _ in range(rng.randint(1, 3)):
        count = rng.randint(0, 6)
        body += struct.pack(order + "H", count if rng.random() < 0.8 else 0xFFFF)
        for _ in range(count):
            size = rng.choice((1, 2, 2**16, 2**31))
            value = rng.choice((0, 6, 8, 14, 26, 0xFFFFFFF0))
            body += struct.pack(order + "HHII", rng.choice(tags), rng.randint(0, 14), size, value)
        body += struct.pack(order + "I", rng.choice((0, 8, 26, len(body))))
    if rng.random() < 0.5:
        data = rng.choice([one for one in seeds if one.name.startswith("JPEG")]).content
        segment = rng.choice((b"\xff\xe1", b"\xff\xe1", b"\xff\xe2"))
        words = (b"Exif\0\0" if segment == b"\xff\xe1" else b"MPF\0") + body
        return data[:2] + segment + struct.pack(">H", len(words) + 2) + words + data[2:]
    parts = _split_chunks(next(one for one in seeds if one.name == "PNG clear").content)
    parts.insert(rng.randint(1, len(parts) - 1), (b"eXIf", body))
    return MAGIC_BYTES[0] + b"".join(pack_chunk(kind, part) for kind, part in parts)


def make_lying_gif(rng: random.Random, seeds: Sequence[Seed]) -> bytes:
    """Screens and frames of any size at any place, thousands of frames, and data of any kind."""

    def number() -> int:
        return rng.choice((0, 1, 16, 300, 5000, 65_535))

    data = b"GIF89a" + struct.pack("<HHBBB", number(), number(), rng.choice((0, 0x80, 0xF7)), 0, 0) + bytes(6)
    frame = b"\x2c" + struct.pack("<HHHHB", number(), number(), number(), number(), rng.choice((0, 0x40, 0x80)))
    frame += bytes([rng.choice((0, 2, 8, 11, 12, 255))]) + b"\x05" + rng.randbytes(5) + b"\0"
    control = b"\x21\xf9\x04" + bytes([rng.randrange(256)]) + b"\1\0\0\0"
    return data + (control + frame) * rng.choice((1, 2, 10_000)) + b";"


def join_two_files(rng: random.Random, seeds: Sequence[Seed]) -> bytes:
    """One file after, or within, another; or with another's first bytes."""
    one = rng.choice(seeds).content
    other = rng.choice(seeds).content
    method = rng.randrange(4)
    if method == 0:
        return one + other
    if method == 1:
        return rng.choice(MAGIC_BYTES) + one
    if method == 2:
        magic_bytes = rng.choice(MAGIC_BYTES)
        return magic_bytes + one[len(magic_bytes) :]
    return b"RIFF" + struct.pack("<I", len(one) + 12) + b"WEBP" + rng.choice((b"VP8 ", b"VP8L", b"VP8X")) + one


def make_noise(rng: random.Random, seeds: Sequence[Seed]) -> bytes:
    """Random bytes, with or without a beginning that promises something; or nothing at all."""
    return rng.choice((b"", *MAGIC_BYTES)) + rng.randbytes(rng.choice((0, 1, 30, 3000)))


def keep_untouched(rng: random.Random, seeds: Sequence[Seed]) -> bytes:
    """Change nothing: the decoder must accept it."""
    return rng.choice(seeds).content


KINDS: dict[str, Damage] = {
    "bits": flip_bits,
    "numbers": falsify_numbers,
    "cut": cut_bytes,
    "spliced": splice_files,
    "repeated": repeat_fragment,
    "chunks": damage_chunks,
    "bombs": make_bomb,
    "loops": make_exif_loop,
    "lying GIF": make_lying_gif,
    "two in one": join_two_files,
    "noise": make_noise,
    "untouched": keep_untouched,
}


def draw_case(seed: int, number: int, seeds: Sequence[Seed]) -> tuple[str, bytes]:
    """The kind and the bytes of one case: bombs are expensive, so there are fewer."""
    rng = random.Random(f"{seed} {number}")
    kinds = list(KINDS)
    kind = rng.choices(kinds, [1 if one in ("bombs", "untouched") else 4 for one in kinds])[0]
    return kind, KINDS[kind](rng, seeds)


def pack_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _split_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    chunks = list[tuple[bytes, bytes]]()
    offset = 8
    while offset < len(content):
        (length,) = struct.unpack_from(">I", content, offset)
        chunks.append((content[offset + 4 : offset + 8], content[offset + 8 : offset + 8 + length]))
        offset += length + 12
    return chunks


@cache
def deflate_zeros(power: int) -> bytes:
    """2 ** power zeros, deflated."""
    compressor = zlib.compressobj(9)
    block = bytes(1 << 20)
    return b"".join([compressor.compress(block) for _ in range(1 << (power - 20))]) + compressor.flush()
