"""Pictures that people bring, opened with care; pictures as numbers. Knows Pillow; knows no model."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from engine.unfit import Unfit

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MAX_PIXELS = 64_000_000
KEPT = 2048  # pixels of the longer side; no model here sees more
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, MemoryError)


def opened(path: Path) -> Image.Image:
    """The picture (of an animation the first frame) upright, RGB, on white where it is transparent. Raises `Unfit`.

    The size is read from the header, and refused before anything is decoded.
    """
    if not path.is_file():
        raise Unfit(f"There is no picture {path.name}.", "member")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit warns at 89 megapixels; ours refuses at 64
            with Image.open(path, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    size = f"{picture.width}×{picture.height}"
                    raise Unfit(
                        f"{path.name} is too large: {size}, at most {MAX_PIXELS // 10**6} megapixels.", "member"
                    )
                return _upright(picture)
    except _UNREADABLE as error:
        raise Unfit(f"{path.name} cannot be read as a picture: PNG, JPEG, WebP or GIF is needed.", "member") from error


def square(picture: Image.Image, side: int) -> Image.Image:
    """Its largest square around the middle, `side` pixels wide."""
    return ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)


def pixels(picture: Image.Image) -> torch.Tensor:
    """float32 `[height, width, 3]`, 0 to 255."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32).copy())


def picture_of(numbers: torch.Tensor) -> Image.Image:
    """The picture of `[height, width, 3]`, 0 to 255; what lies outside is cut off."""
    return Image.fromarray(numbers.round().clamp(0, 255).to(torch.uint8).numpy())


def channels(latents: torch.Tensor) -> list[Image.Image]:
    """Every channel as a grey picture of its own, black at -3 and white at 3: latents have about unit variance."""
    grey = ((latents.float().cpu() + 3) / 6 * 255).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(channel.numpy()) for channel in grey]


def _upright(picture: Image.Image) -> Image.Image:
    turned = ImageOps.exif_transpose(picture).convert("RGBA")
    turned.thumbnail((KEPT, KEPT), Image.Resampling.LANCZOS)
    page = Image.new("RGBA", turned.size, (255, 255, 255, 255))
    return Image.alpha_composite(page, turned).convert("RGB")
