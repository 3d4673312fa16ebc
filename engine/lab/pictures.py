"""Opens the user's pictures safely and converts between pictures and tensors. Knows Pillow; knows no model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from engine.training.pictures.picture_file import Unusable, decode
from engine.unfit import Unfit


def opened(path: Path) -> Image.Image:
    """Open a picture as training does, upright and on white; the first frame of an animation. Raises `Unfit`."""
    try:
        return decode(path, first_frame=True).pixels
    except Unusable as error:
        raise Unfit(f"{path.name[:100]} {error}.", "member") from error


def square(picture: Image.Image, side: int) -> Image.Image:
    """Crop the largest square around the middle and resize it to `side` pixels."""
    return ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)


def pixels(picture: Image.Image) -> torch.Tensor:
    """Return float32 `[height, width, 3]`, 0 to 255."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32).copy())


def picture_of(numbers: torch.Tensor) -> Image.Image:
    """Return the picture of `[height, width, 3]`, 0 to 255; other values are clamped."""
    return Image.fromarray(numbers.round().clamp(0, 255).to(torch.uint8).numpy())


def channels(latents: torch.Tensor) -> list[Image.Image]:
    """Return each channel as a grey picture, black at -3 and white at 3: latents have about unit variance."""
    grey = ((latents.float().cpu() + 3) / 6 * 255).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(channel.numpy()) for channel in grey]
