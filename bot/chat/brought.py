"""Files that members upload, checked by their size before anything is fetched.

Knows only Discord's description of a file. Other modules check addresses, fetch and decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from bot.desk.bringing import Remote
from bot.images.intake import MOST_BYTES
from bot.refused import Refused

MOST = MOST_BYTES  # bytes of one picture
LOST = "Discord did not let me download {}. Please send it again."


class File(Protocol):
    """Discord's description of a file: size in bytes and address."""

    @property
    def url(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def filename(self) -> str: ...


@dataclass(frozen=True)
class Sent:
    """A file from a submitted form."""

    url: str
    size: int
    filename: str


def remote(file: File) -> Remote:
    """Return a reference that the services fetch later. Raises `Refused` (413) for a file that is too large."""
    if file.size > MOST:
        said = f"{file.filename[:60]} has {file.size / 2**20:.1f} MiB, and the limit is {MOST // 2**20} MiB."
        raise Refused(said, 413)
    ascii_only = "".join(letter if letter.isascii() else quote(letter) for letter in file.url)  # as HTTP sends it
    return Remote(ascii_only, file.size, LOST.format(file.filename[:60] or "the file"))
