"""Pictures on their way in and out: what a tool's argument names, and small copies for an assistant to look at."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from pathlib import Path

import aiohttp
from mcp_types import ImageContent
from PIL import Image

from bot.apis.mcp.arguments import JOB_PATTERN
from bot.cli.imagine import http_client
from bot.cli.imagine.job_inputs import read_files
from bot.domain.errors import UserError
from bot.pictures.uploads.upload_decoder import MAX_UPLOAD_BYTES

JOB_PICTURE = re.compile(rf"({JOB_PATTERN})/([1-4])")
DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)
MAX_EDGE = 768  # pixels of a copy: assistants scale larger ones down, and count their bytes
COPY_QUALITY = 85  # of JPEG
UNREADABLE = "A picture is a finished one as JOB/2, or a data: URL with base64."


def parse_job_picture(text: str) -> tuple[str, int] | None:
    """Return job and number if the text names a finished picture."""
    match = JOB_PICTURE.fullmatch(text.strip())
    return (match[1], int(match[2])) if match else None


async def read_upload(text: str, *, reads_files: bool) -> bytes:
    """Return the bytes of a data: URL, or of a file where that is allowed. Decode no picture. Raise `UserError`."""
    if prefix := DATA_URL.match(text):
        return _decode_base64(text[prefix.end() :])
    if not reads_files or text.startswith("data:") or "\0" in text:
        raise UserError(UNREADABLE)
    return await asyncio.to_thread(_read_file, text)


def _read_file(text: str) -> bytes:
    try:
        path = Path(text).expanduser()
        is_something_else = path.exists() and not path.is_file()
    except (OSError, RuntimeError) as error:  # a name too long, as of base64 alone; the home of nobody
        raise UserError(UNREADABLE) from error
    if is_something_else:  # a pipe would be waited for
        raise UserError(f"{path} is no file.")
    return read_files([path])[0]


def _decode_base64(text: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:  # `binascii.Error` is one; characters outside ASCII are another
        raise UserError(UNREADABLE) from error
    if len(content) > MAX_UPLOAD_BYTES:
        raise UserError(f"The picture is too large: it may have {MAX_UPLOAD_BYTES // 2**20} MiB.")
    return content


async def read_picture(session: aiohttp.ClientSession, text: str, *, reads_files: bool) -> bytes:
    """Return the bytes of any picture that an argument may name. Raise `UserError`."""
    if (named := parse_job_picture(text)) is None:
        return await read_upload(text, reads_files=reads_files)
    return await http_client.fetch_bytes(session, picture_path(*named))


def picture_path(job: str, number: int) -> str:
    """Return a finished picture's address in Darkroom's API."""
    return f"/api/jobs/{job}/pictures/{number}.png"


async def make_copy(png: bytes) -> ImageContent:
    """Return a copy of a finished picture of at most `MAX_EDGE` pixels, as JPEG."""
    return show_jpeg(await asyncio.to_thread(_shrink, png))


def _shrink(png: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        picture.thumbnail((MAX_EDGE, MAX_EDGE))
        picture.convert("RGB").save(buffer, "JPEG", quality=COPY_QUALITY)
    return buffer.getvalue()


def show_jpeg(jpeg: bytes) -> ImageContent:
    """Return a picture as a tool's content."""
    return ImageContent(data=base64.b64encode(jpeg).decode(), mime_type="image/jpeg")
