"""Opens the user's pictures safely and converts between pictures and tensors, without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from engine.contract.rejection import JobRejected
from training.pictures.picture_file import UnusablePicture, decode_picture


def open_picture(path: Path) -> Image.Image:
    """Open a picture as training does, upright and on white; the first frame of an animation. Raises `JobRejected`."""
    try:
        return decode_picture(path, first_frame=True).pixels
    except UnusablePicture as error:
        raise JobRejected(f"{path.name[:100]} {error}.", "member") from error


def crop_square(picture: Image.Image, side: int) -> Image.Image:
    """Crop the largest square around the middle and resize it to `side` pixels."""
    return ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """Return float32 `[height, width, 3]`, 0 to 255."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32).copy())


def to_picture(values: torch.Tensor) -> Image.Image:
    """Return the picture of `[height, width, 3]`, 0 to 255; other values are clamped."""
    return Image.fromarray(values.round().clamp(0, 255).to(torch.uint8).numpy())


def channel_pictures(latents: torch.Tensor) -> list[Image.Image]:
    """Return each channel as a grey picture, black at -3 and white at 3: latents have about unit variance."""
    grey = ((latents.float().cpu() + 3) / 6 * 255).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(channel.numpy()) for channel in grey]
