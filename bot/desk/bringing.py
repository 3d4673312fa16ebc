"""What a member wants to begin with, before anything of it is fetched or read. Frozen values; does no I/O.

A front end says what it is; the studio asks the rules first, and only then looks at it (`bot.desk.starting`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bot.images.intake import MOST_BYTES
from bot.images.links import LOST, check, leading, shot_of
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


def linked(text: str, bring: Bring | None, own: Sequence[str]) -> tuple[str, Bring | None]:
    """A prompt without the addresses that it begins with, and what they name beside what is brought already.

    `own`: the room's addresses, whose pictures are found by their job. Raises `Refused` for any other address.
    """
    urls, rest = leading(text)
    if not urls:
        return text, bring
    bring = bring or Bring()
    return rest, replace(bring, pictures=(*bring.pictures, *(_named(url, own) for url in urls)))


def _named(url: str, own: Sequence[str]) -> Remote | Finished:
    for base in own:
        if (shot := shot_of(url, base)) is not None:
            return Finished(shot[0], shot[1] - 1)
    return Remote(check(url))


def _size(piece: bytes | Remote) -> int:
    return piece.size if isinstance(piece, Remote) else len(piece)
