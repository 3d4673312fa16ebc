"""Init images as a request names them, before any is fetched or decoded. Frozen values; no I/O.

Front ends build them; the rules are checked before anything is fetched (`bot.desk.starting`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bot.images.intake import MOST_BYTES
from bot.images.links import LOST, check, leading, shot_of
from bot.images.reading import KEPT_SIDE

READ = 3 * KEPT_SIDE * KEPT_SIDE  # the most bytes of one decoded picture


@dataclass(frozen=True)
class Remote:
    """A file at Discord. `size`: at most so many bytes, as Discord says; `lost`: the error text if it is gone."""

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
    """Init images in order, with an optional mask and optional weights."""

    pictures: tuple[Piece, ...] = ()
    mask: bytes | Remote | None = None
    weights: tuple[float, ...] = ()

    @property
    def room(self) -> int:
        """The most bytes of memory that the files and their decoded pictures take until the job is written."""
        return sum(_size(piece) + READ for piece in self._files())

    def _files(self) -> Iterator[bytes | Remote]:
        for piece in (*self.pictures, self.mask):
            if isinstance(piece, (bytes, Remote)):
                yield piece


def linked(text: str, bring: Bring | None, own: Sequence[str]) -> tuple[str, Bring | None]:
    """Split leading URLs off a prompt; return the rest, and the init images with those pictures added.

    `own`: base addresses of our page, whose pictures are found by job. Raises `Refused` for any other address.
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
