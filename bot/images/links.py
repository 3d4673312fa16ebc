"""Which addresses a picture may come from: Discord's, and the room's own. All else could make us knock at any door.

Knows addresses and HTTP; knows nothing of what a picture is. The room's own pictures are found by their job, never
fetched.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import aiohttp

from bot.images.intake import MOST_BYTES
from bot.refused import Refused

MOST_URL = 2048  # characters
SECONDS = 20.0
CHUNK = 64 * 1024
ELSEWHERE = "Only pictures that were uploaded to Discord or here can be used: attach the file."
LOST = "The picture cannot be fetched from Discord just now: attach the file."
TOO_LARGE = f"The picture is too large: up to {MOST_BYTES // 2**20} MiB are read."
# Written out rather than parsed: two parsers may disagree about an address, an expression leaves nothing to read
# differently. No user, no other port, no fragment, no backslash, nothing outside ASCII (RFC 3986, section 3).
Fetch = Callable[[str, int], Awaitable[bytes]]  # an address and the most bytes that are taken from there
_DISCORD = re.compile(
    r"https://(?:cdn\.discordapp\.com|media\.discordapp\.net)(?::443)?"
    r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})+(?:\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
)
_OWN = re.compile(r"/api/jobs/([0-9A-HJKMNP-TV-Z]{26})/pictures/([1-9])\.png")
# At the beginning of a prompt; perhaps in angle brackets, as Discord has one that shows nothing, or before a comma.
_LEADING = re.compile(r"\s*<?(https?://[^\s<>]*)>?,?(?:\s+|$)", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+")


class Gone(Refused):
    """Discord does not hand it out now."""

    def __init__(self) -> None:
        super().__init__(LOST, 404)


def allowed(url: str, own: str | None = None) -> bool:
    """Whether a picture may be taken from there. `own`: the room's address, as in https://example.org/darkroom."""
    return from_discord(url) or shot_of(url, own) is not None


def leading(text: str) -> tuple[list[str], str]:
    """The addresses that a prompt begins with, whatever they are, and the prompt without them."""
    found, at = list[str](), 0
    while match := _LEADING.match(text, at):
        found.append(match[1].rstrip(","))
        at = match.end()
    return found, text[at:]


def check(url: str, own: str | None = None) -> str:
    """The address, if a picture may be taken from there. Raises `Refused`."""
    if not allowed(url, own):
        raise Refused(ELSEWHERE)
    return url


def from_discord(url: str) -> bool:
    """Whether it is an address of a file that was uploaded to Discord."""
    return len(url) <= MOST_URL and _DISCORD.fullmatch(url) is not None


def shot_of(url: str, own: str | None) -> tuple[str, int] | None:
    """The job and the picture's number, counted from 1, of an address of one of the room's own pictures."""
    base = (own or "").rstrip("/")
    if not _ORIGIN.match(base) or len(url) > MOST_URL or not url.startswith(base + "/api/"):
        return None
    found = _OWN.fullmatch(url[len(base) :])
    return (found[1], int(found[2])) if found else None


async def fetch(session: aiohttp.ClientSession, url: str, most: int = MOST_BYTES) -> bytes:
    """The file behind one of Discord's addresses. Raises `Refused` for any other, `Gone` for what is not to be had.

    Bounded in bytes and time; a redirect is no file. It is asked for as it is, uncompressed, so that a length is one.
    """
    if not from_discord(url):
        raise Refused(ELSEWHERE)
    try:
        async with session.get(
            url, allow_redirects=False, timeout=aiohttp.ClientTimeout(total=SECONDS),
            headers={"Accept": "image/*", "Accept-Encoding": "identity"},
        ) as answer:  # fmt: skip
            if answer.status != 200 or answer.headers.get("Content-Encoding", "identity") != "identity":
                raise Gone
            return await _bounded(answer, most)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise Gone from error


async def _bounded(answer: aiohttp.ClientResponse, most: int) -> bytes:
    if (answer.content_length or 0) > most:
        raise Refused(TOO_LARGE, 413)
    content = bytearray()
    async for part in answer.content.iter_chunked(CHUNK):
        content += part
        if len(content) > most:
            raise Refused(TOO_LARGE, 413)
    return bytes(content)
