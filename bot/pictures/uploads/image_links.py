"""Addresses from which pictures may come, Discord's and the page's own, and the download from Discord.

It refuses any other address, against server-side request forgery. It finds the page's own pictures by their job.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import aiohttp

from bot.domain.errors import UserError
from bot.pictures.uploads.upload_decoder import MAX_UPLOAD_BYTES

MAX_URL_LENGTH = 2048  # characters
FETCH_TIMEOUT = 20.0
CHUNK_BYTES = 64 * 1024
NOT_ALLOWED = "Only pictures that were uploaded to Discord or here can be used: attach the file."
FETCH_FAILED = "The picture cannot be fetched from Discord just now: attach the file."
TOO_LARGE = f"The picture is too large: up to {MAX_UPLOAD_BYTES // 2**20} MiB are read."
FetchFile = Callable[[str, int], Awaitable[bytes]]  # an address, and the most bytes to download from it
# A regular expression rather than a URL parser: two parsers may read one address differently.
# No user, no other port, no fragment, no backslash, nothing outside ASCII (RFC 3986, section 3).
_DISCORD = re.compile(
    r"https://(?:cdn\.discordapp\.com|media\.discordapp\.net)(?::443)?"
    r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})+(?:\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
)
_JOB = r"([0-9A-HJKMNP-TV-Z]{26})"
_OWN_PICTURE = re.compile(rf"/api/jobs/{_JOB}/pictures/([1-9])\.png")
# An address that an answer gave. Its signature, for strangers, does not matter: whoever uses it here is a known member.
_SIGNED_PICTURE = re.compile(rf"/v1/pictures/{_JOB}/([1-9])\.(?:png|jpeg|webp)\?[A-Za-z0-9=&]*")
# At the start of a prompt; perhaps in angle brackets (Discord then shows no embed), or before a comma.
_LEADING_LINK = re.compile(r"\s*<?(https?://[^\s<>]*)>?,?(?:\s+|$)", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+")


class FileUnavailable(UserError):
    """Discord does not serve the file now."""

    def __init__(self) -> None:
        super().__init__(FETCH_FAILED, 404)


def split_leading_links(text: str) -> tuple[list[str], str]:
    """Return the addresses at the start of a prompt, allowed or not, and the prompt without them."""
    urls = list[str]()
    offset = 0
    while match := _LEADING_LINK.match(text, offset):
        urls.append(match[1].rstrip(","))
        offset = match.end()
    return urls, text[offset:]


def check_link(url: str) -> str:
    """Return the address if it is that of a file uploaded to Discord. Raises `UserError`."""
    if not is_discord_file(url):
        raise UserError(NOT_ALLOWED)
    return url


def is_discord_file(url: str) -> bool:
    """Return whether it is the address of a file uploaded to Discord."""
    return len(url) <= MAX_URL_LENGTH and _DISCORD.fullmatch(url) is not None


def parse_own_picture(url: str, page_url: str | None) -> tuple[str, int] | None:
    """Return job and picture number, counted from 1, of the address of one of the page's own pictures; else None.

    `page_url`: the page's address, as in https://example.org/darkroom.
    """
    base = (page_url or "").rstrip("/")
    if not _ORIGIN.match(base) or len(url) > MAX_URL_LENGTH or not url.startswith(base + "/"):
        return None
    path = url[len(base) :]
    match = _OWN_PICTURE.fullmatch(path) or _SIGNED_PICTURE.fullmatch(path)
    return (match[1], int(match[2])) if match else None


async def fetch_file(session: aiohttp.ClientSession, url: str, max_bytes: int = MAX_UPLOAD_BYTES) -> bytes:
    """Download a file from Discord. Raises `UserError` for another address, `FileUnavailable` if Discord does not serve
    it.

    It limits bytes and time, and refuses redirects. It asks for no compression, so that the declared length is the
    file's.
    """
    if not is_discord_file(url):
        raise UserError(NOT_ALLOWED)
    try:
        async with session.get(
            url,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=FETCH_TIMEOUT),
            headers={"Accept": "image/*", "Accept-Encoding": "identity"},
        ) as response:
            if response.status != 200 or response.headers.get("Content-Encoding", "identity") != "identity":
                raise FileUnavailable
            return await _read_bounded(response, max_bytes)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise FileUnavailable from error


async def _read_bounded(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    if (response.content_length or 0) > max_bytes:
        raise UserError(TOO_LARGE, 413)
    content = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        content += chunk
        if len(content) > max_bytes:
            raise UserError(TOO_LARGE, 413)
    return bytes(content)
