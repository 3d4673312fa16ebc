"""Files that members upload, checked by their size before anything is fetched.

It knows only Discord's description of a file. Other modules check addresses, fetch and decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from bot.domain.errors import UserError
from bot.jobs.init_images import RemoteFile
from bot.pictures.uploads.upload_decoder import MAX_UPLOAD_BYTES

MAX_FILE_BYTES = MAX_UPLOAD_BYTES  # bytes of one picture
DOWNLOAD_FAILED = "Discord did not let me download {}. Please send it again."


class DiscordFile(Protocol):
    """Discord's description of a file: size in bytes and address."""

    @property
    def url(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def filename(self) -> str: ...


@dataclass(frozen=True)
class UploadedFile:
    """A file from a submitted form."""

    url: str
    size: int
    filename: str


def to_remote_file(file: DiscordFile) -> RemoteFile:
    """Return a reference that the services fetch later. Raises `UserError` (413) for a file that is too large."""
    if file.size > MAX_FILE_BYTES:
        text = f"{file.filename[:60]} has {file.size / 2**20:.1f} MiB, and the limit is {MAX_FILE_BYTES // 2**20} MiB."
        raise UserError(text, 413)
    ascii_url = "".join(letter if letter.isascii() else quote(letter) for letter in file.url)  # as HTTP sends it
    return RemoteFile(ascii_url, file.size, DOWNLOAD_FAILED.format(file.filename[:60] or "the file"))
