"""What a member wants to begin with, before anything of it is fetched or read. Frozen values; pure.

A front end says what it is; the studio asks the rules first, and only then looks at it (`bot.desk.starting`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bot.images.intake import MOST_BYTES
from bot.images.links import LOST
from bot.images.reading import KEPT_SIDE

READ = 3 * KEPT_SIDE * KEPT_SIDE  # bytes that one picture has at most once it is read


@dataclass(frozen=True)
class Remote:
    """A file at Discord. `size`: bytes that it has at most, as Discord says; `lost`: what is said where it is gone."""

    url: str
    size: int = MOST_BYTES
    lost: str = LOST


@dataclass(frozen=True)
class Finished:
    """A finished picture: its job, and its index counted from 0."""

    job: str
    index: int


Piece = bytes | Remote | Finished


@dataclass(frozen=True)
class Bring:
    """Pictures in their order, perhaps a mask, perhaps a weight for each picture."""

    pictures: tuple[Piece, ...] = ()
    mask: bytes | Remote | None = None
    weights: tuple[float, ...] = ()

    @property
    def room(self) -> int:
        """Bytes of memory that it takes at most until it is a job: the files, and what is read of them."""
        return sum(_size(piece) + READ for piece in self._files())

    def _files(self) -> Iterator[bytes | Remote]:
        for piece in (*self.pictures, self.mask):
            if isinstance(piece, (bytes, Remote)):
                yield piece


def _size(piece: bytes | Remote) -> int:
    return piece.size if isinstance(piece, Remote) else len(piece)
