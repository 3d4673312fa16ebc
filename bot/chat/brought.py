"""Files that members bring: looked at by their size before anything of them is fetched, then fetched from Discord.

Knows Discord's word about a file; opens none. What a picture is decides the intake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import aiohttp
import discord

from bot.images.intake import MOST_BYTES
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient

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


async def fetched(client: DarkroomClient, *files: File | None) -> list[bytes]:
    """The contents of those that are there, in order. Raises `Refused` for one that is too large or not to be had."""
    there = [file for file in files if file is not None]
    for file in there:
        if file.size > MOST:
            said = f"{file.filename[:60]} has {file.size / 2**20:.1f} MiB, and at most {MOST // 2**20} are taken."
            raise Refused(said, 413)
    return [await _fetched(client, file) for file in there]


async def _fetched(client: DarkroomClient, file: File) -> bytes:
    try:
        content = await client.http.get_from_cdn(file.url)
    except (discord.HTTPException, aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Refused(LOST.format(file.filename[:60] or "the file")) from error
    if len(content) > MOST:
        raise Refused(f"At most {MOST // 2**20} MiB are taken.", 413)
    return content
