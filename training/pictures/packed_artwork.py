"""The built-in artwork in one file, for machines without npm: drawings, their words, and all licences.

The file is safetensors: the drawings as PNGs, one after the other, and a JSON listing in its metadata. It may come from
a stranger, so its sizes are checked before anything is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from training.core import checkpoint
from training.pictures.artwork import MAX_SIDE, Artwork
from training.pictures.captions import Description

SUFFIX = ".safetensors"
LISTING_KEY = "artwork"
MAX_FILE_BYTES = 60_000_000
MAX_DRAWINGS = 6_000  # decoded, these are at most 400 MB; today there are 4,834
MAX_LEMMAS = 20_000  # today 4,083


class PackedDrawing(msgspec.Struct, frozen=True):
    """A drawing without its pixels; `description` is a row of the listing's descriptions."""

    key: str
    description: int
    group: int
    style: str
    licence: str
    credit: str


class Listing(msgspec.Struct, frozen=True):
    """The file's metadata.

    `notices` has the licence text of each source by name, for people who pass the file on; `lemmas` has the nouns of
    WordNet that no caption has, each with the labels that it means.
    """

    drawings: list[PackedDrawing]
    descriptions: list[Description]
    notices: dict[str, str]
    lemmas: dict[str, frozenset[str]]


def write_pack(
    path: Path, drawings: Sequence[Artwork], notices: Mapping[str, str], lemmas: Mapping[str, frozenset[str]]
) -> int:
    """Write drawings of at most `MAX_SIDE` px, and return the bytes. Raises ValueError if they are too many."""
    rows = {description: row for row, description in enumerate(dict.fromkeys(one.description for one in drawings))}
    packed = [
        PackedDrawing(one.key, rows[one.description], one.group, one.style, one.licence, one.credit) for one in drawings
    ]
    pictures = [_encode_png(drawing.pixels) for drawing in drawings]
    listing = Listing(packed, list(rows), dict(notices), dict(lemmas))
    tensors = {
        "pictures": torch.frombuffer(bytearray(b"".join(pictures)), dtype=torch.uint8),
        "lengths": torch.tensor([len(picture) for picture in pictures]),
    }
    checkpoint.save(path, tensors, {}, {LISTING_KEY: msgspec.json.encode(listing, order="deterministic").decode()})
    size = path.stat().st_size
    if size > MAX_FILE_BYTES or len(drawings) > MAX_DRAWINGS or len(lemmas) > MAX_LEMMAS:
        path.unlink()
        raise ValueError(f"{len(drawings)} drawings of {size / 1e6:.1f} MB are too many for one file.")
    return size


def read_pack(path: Path, *, with_related_words: bool = False) -> list[Artwork]:
    """Read the drawings in the order in which they were written. Raises OSError, or ValueError for any other file."""
    with _refuse_others(path):
        listing, pictures = _read_parts(path)
        descriptions = listing.descriptions
        if not with_related_words:
            descriptions = [replace(description, related_words=()) for description in descriptions]
        rows = zip(listing.drawings, map(_decode_png, pictures), strict=True)
        return [
            Artwork(row.key, descriptions[row.description], row.group, row.style, row.licence, row.credit, picture)
            for row, picture in rows
        ]


def read_held_out_lemmas(path: Path) -> dict[str, frozenset[str]]:
    """Read the nouns that no caption has, each with the labels that it means. Raises as `read_pack` does."""
    with _refuse_others(path):
        return _read_parts(path)[0].lemmas


@contextmanager
def _refuse_others(path: Path) -> Generator[None]:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path} has more than {MAX_FILE_BYTES // 10**6} MB, too many for packed artwork.")
    try:
        yield
    except Exception as error:  # parsers of untrusted files fail in many ways
        raise ValueError(f"{path} holds no artwork of `darkroom train pack`, or is damaged.") from error


def _read_parts(path: Path) -> tuple[Listing, Iterator[bytes]]:
    with cast(Any, safe_open)(path, framework="numpy") as file:
        listing = msgspec.json.decode(file.metadata()[LISTING_KEY], type=Listing)
        content = file.get_tensor("pictures")
        lengths = file.get_tensor("lengths")
    are_vectors = content.dtype == np.uint8 and lengths.dtype == np.int64 and content.ndim == lengths.ndim == 1
    if not (are_vectors and len(listing.drawings) == len(lengths) <= MAX_DRAWINGS):
        raise ValueError("the numbers of drawings differ")
    if len(listing.lemmas) > MAX_LEMMAS:
        raise ValueError("there are too many lemmas")
    if len(lengths) == 0 or lengths.min() < 0 or lengths.max() > len(content) or lengths.sum() != len(content):
        raise ValueError("the lengths are not those of the pictures")
    ends = np.cumsum(lengths)
    return listing, (content[end - length : end].tobytes() for end, length in zip(ends, lengths, strict=True))


def _encode_png(pixels: Image.Image) -> bytes:
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def _decode_png(content: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(content), formats=("PNG",))
    if max(picture.size) > MAX_SIDE:
        raise ValueError("a drawing is too large")
    return picture.convert("RGBA")
