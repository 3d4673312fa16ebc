"""Addresses that pictures may come from, Discord's and this web page's own, and the download from Discord.

Any other address is refused, against server-side request forgery. The page's own pictures are found by their job.
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
Fetch = Callable[[str, int], Awaitable[bytes]]  # an address, and the most bytes to take from there
# A regular expression rather than a URL parser: two parsers may read one address differently.
# No user, no other port, no fragment, no backslash, nothing outside ASCII (RFC 3986, section 3).
_DISCORD = re.compile(
    r"https://(?:cdn\.discordapp\.com|media\.discordapp\.net)(?::443)?"
    r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})+(?:\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
)
_OWN = re.compile(r"/api/jobs/([0-9A-HJKMNP-TV-Z]{26})/pictures/([1-9])\.png")
# At the start of a prompt; perhaps in angle brackets (Discord then shows no embed), or before a comma.
_LEADING = re.compile(r"\s*<?(https?://[^\s<>]*)>?,?(?:\s+|$)", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+")


class Gone(Refused):
    """Discord does not serve the file now."""

    def __init__(self) -> None:
        super().__init__(LOST, 404)


def allowed(url: str, own: str | None = None) -> bool:
    """Return whether a picture may come from there. `own`: the page's address, as in https://example.org/darkroom."""
    return from_discord(url) or shot_of(url, own) is not None


def leading(text: str) -> tuple[list[str], str]:
    """Return the addresses that a prompt begins with, allowed or not, and the prompt without them."""
    found, at = list[str](), 0
    while match := _LEADING.match(text, at):
        found.append(match[1].rstrip(","))
        at = match.end()
    return found, text[at:]


def check(url: str, own: str | None = None) -> str:
    """Return the address if a picture may come from there. Raises `Refused`."""
    if not allowed(url, own):
        raise Refused(ELSEWHERE)
    return url


def from_discord(url: str) -> bool:
    """Return whether it is the address of a file uploaded to Discord."""
    return len(url) <= MOST_URL and _DISCORD.fullmatch(url) is not None


def shot_of(url: str, own: str | None) -> tuple[str, int] | None:
    """Return job and picture number, counted from 1, of the address of one of the page's own pictures; else None."""
    base = (own or "").rstrip("/")
    if not _ORIGIN.match(base) or len(url) > MOST_URL or not url.startswith(base + "/api/"):
        return None
    found = _OWN.fullmatch(url[len(base) :])
    return (found[1], int(found[2])) if found else None


async def fetch(session: aiohttp.ClientSession, url: str, most: int = MOST_BYTES) -> bytes:
    """Download a file from Discord. Raises `Refused` for another address, `Gone` if Discord does not serve it.

    Bytes and time are limited; a redirect is refused. No compression is asked for, so that the declared length is the
    file's.
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
