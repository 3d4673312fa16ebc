"""Files that members bring: looked at by their size before anything of them is fetched.

Knows Discord's word about a file; fetches and opens none. Where it may come from, and what a picture is, others decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from bot.desk.bringing import Remote
from bot.images.intake import MOST_BYTES
from bot.refused import Refused

MOST = MOST_BYTES  # of one picture
LOST = "Discord does not hand {} out just now. Please send it once more."


class File(Protocol):
    """What Discord says of a file: its size in bytes, and where it lies."""

    @property
    def url(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def filename(self) -> str: ...


@dataclass(frozen=True)
class Sent:
    """A file out of a form."""

    url: str
    size: int
    filename: str


def remote(file: File) -> Remote:
    """What the studio fetches in its turn. Raises `Refused` for a file that is too large."""
    if file.size > MOST:
        said = f"{file.filename[:60]} has {file.size / 2**20:.1f} MiB, and at most {MOST // 2**20} are taken."
        raise Refused(said, 413)
    ascii_only = "".join(letter if letter.isascii() else quote(letter) for letter in file.url)  # as it is sent anyway
    return Remote(ascii_only, file.size, LOST.format(file.filename[:60] or "the file"))
