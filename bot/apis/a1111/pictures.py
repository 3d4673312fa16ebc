"""What AUTOMATIC1111's API does to pictures by itself: it exchanges a mask's colours, and fits a size."""

from __future__ import annotations

import asyncio
import io

from PIL import Image, ImageOps

from bot.domain.dto import Member
from bot.jobs.init_images import InitImageLoader
from bot.pictures.image_codec import decode_image, encode_image, read_recipe_text, resize_image


async def invert_mask(loader: InitImageLoader, member: Member, mask: bytes) -> bytes:
    """Return a mask with black and white exchanged. The sandbox decodes it first. Raises `UserError`."""
    decoded = await loader.load_upload(member, mask)
    return await asyncio.to_thread(_invert, decoded.png)


def _invert(png: bytes) -> bytes:
    return encode_image(ImageOps.invert(decode_image(png).convert("L")), "PNG")


def resize_png(png: bytes, size: tuple[int, int], *, crops: bool) -> bytes:
    """Return a picture in that size, with its recipe; `crops`: what does not fit its shape is cut off. CPU-bound."""
    with Image.open(io.BytesIO(png)) as picture:
        if picture.size == size:
            return png
    pixels = decode_image(png)
    fitted = ImageOps.fit(pixels, size, Image.Resampling.LANCZOS) if crops else resize_image(pixels, size)
    return encode_image(fitted, "PNG", text=read_recipe_text(png))
