"""Pictures in base64, as AUTOMATIC1111's API sends and receives them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io

from PIL import Image, ImageOps

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.images.image_codec import decode_image, encode_image, read_recipe_text, resize_image
from bot.images.uploads.upload_decoder import MAX_UPLOAD_BYTES
from bot.services.init_images.loader import InitImageLoader

MAX_TEXT = MAX_UPLOAD_BYTES * 4 // 3 + 1024  # characters of a picture in base64
DATA_URL = "data:"


def decode_picture(text: str, label: str = "picture") -> bytes:
    """Return the bytes of a picture in base64, perhaps as a data URL. Raises `UserError`; decodes no pixel."""
    if text.startswith(("http://", "https://")):
        raise UserError(f"The {label} must be sent in base64: Darkroom fetches no addresses for programs.")
    content = text.partition(",")[2] if text.startswith(DATA_URL) else text
    if len(content) > MAX_TEXT:
        raise UserError(f"The {label} is too large: up to {MAX_UPLOAD_BYTES >> 20} MiB are read.", 413)
    try:
        return base64.b64decode(content)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"The {label} is no picture in base64.") from error


async def invert_mask(loader: InitImageLoader, member: Member, mask: bytes) -> bytes:
    """Return a mask with black and white exchanged. The sandbox decodes it first. Raises `UserError`."""
    decoded = await loader.load_upload(member, mask)
    return await asyncio.to_thread(_invert, decoded.png)


def _invert(png: bytes) -> bytes:
    return encode_image(ImageOps.invert(decode_image(png).convert("L")), "PNG")


def encode_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def resize_png(png: bytes, size: tuple[int, int], *, crops: bool) -> bytes:
    """Return a picture in that size, with its recipe; `crops`: what does not fit its shape is cut off. CPU-bound."""
    with Image.open(io.BytesIO(png)) as picture:
        if picture.size == size:
            return png
    pixels = decode_image(png)
    fitted = ImageOps.fit(pixels, size, Image.Resampling.LANCZOS) if crops else resize_image(pixels, size)
    return encode_image(fitted, "PNG", text=read_recipe_text(png))
