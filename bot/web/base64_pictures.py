"""Pictures in base64, as the JSON of other programs' APIs has them."""

from __future__ import annotations

import base64
import binascii

from bot.domain.errors import UserError
from bot.pictures.uploads.upload_decoder import MAX_UPLOAD_BYTES

MAX_TEXT = MAX_UPLOAD_BYTES * 4 // 3 + 1024  # characters of a picture in base64
DATA_URL = "data:"


def decode_picture(text: str, label: str = "picture") -> bytes:
    """Return the bytes of a picture in base64, perhaps as a data URL. Raises `UserError`; decodes no pixel.

    Line breaks within are allowed. It takes some milliseconds for a megabyte.
    """
    if text.startswith(("http://", "https://")):
        raise UserError(f"The {label} must be sent in base64: Darkroom fetches no addresses for programs.")
    header, _, content = text.partition(",") if text.startswith(DATA_URL) else ("", "", text)
    if header and not header.endswith(";base64"):
        raise UserError("A data URL has its picture in base64, as in data:image/png;base64,…")
    if len(content) > MAX_TEXT:
        raise UserError(f"The {label} is too large: up to {MAX_UPLOAD_BYTES >> 20} MiB are read.", 413)
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters outside ASCII
        raise UserError(f"The {label} is no picture in base64.") from error


def encode_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
