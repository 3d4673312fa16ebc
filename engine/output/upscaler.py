"""Upscales finished pictures, with the super-resolver if there is one, else with Lanczos, which adds no detail.

If the result would be too large, it refuses the picture before it decodes it.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO

import torch
from PIL import Image

from engine.contract import UpscaleMethod
from engine.contract.rejection import JobRejected
from engine.device.threads import limit_to_one_core
from engine.output.image_encoding import encode_png
from engine.upscaling.super_resolver import MAX_SIDE, OnTile, SuperResolver

LANCZOS = "Lanczos"


@dataclass(frozen=True)
class UpscaledPicture:
    """A PNG, and the method that really made it."""

    png: bytes
    method: UpscaleMethod


class Upscaler:
    """Upscales one picture after another in its own thread, on one core, beside the engine."""

    def __init__(self, resolver: SuperResolver | None = None) -> None:
        self._resolver = resolver
        cores = torch.get_num_threads()
        self._thread = ThreadPoolExecutor(1, "upscaler", limit_to_one_core, (cores,))

    def measure_ms_per_megapixel(self) -> float:
        """Return milliseconds per megapixel of source; 0 without a super-resolver. Blocks for a moment."""
        return 0.0 if self._resolver is None else self._thread.submit(self._resolver.measure_ms_per_megapixel).result()

    def upscale(
        self, source: bytes, factor: int, method: UpscaleMethod, on_tile: OnTile | None = None
    ) -> Future[UpscaledPicture]:
        """Run `upscale_picture` in the thread, which also calls `on_tile`."""
        return self._thread.submit(upscale_picture, source, factor, method, self._resolver, on_tile)

    def close(self) -> None:
        """Drop waiting pictures; the current one finishes by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def upscale_picture(
    source: bytes, factor: int, method: UpscaleMethod = "lanczos", resolver: SuperResolver | None = None,
    on_tile: OnTile | None = None,
) -> UpscaledPicture:  # fmt: skip
    """Return the PNG `factor` times as wide and high; its recipe stays, with the upscale noted. Raises `JobRejected`.

    Without a `resolver` "gan" falls back to Lanczos, and the result says so.
    """
    picture, text = _open_source(source, factor)
    if method == "gan" and resolver is not None:
        upscaled, name = resolver.upscale(picture, factor, on_tile), resolver.name
    else:
        size = (picture.width * factor, picture.height * factor)
        upscaled, name, method = picture.resize(size, Image.Resampling.LANCZOS), LANCZOS, "lanczos"
    upscale_note = f"Postprocess upscale by: {factor}, Postprocess upscaler: {name}"  # as A1111's extras write it
    return UpscaledPicture(encode_png(upscaled, f"{text}, {upscale_note}" if text else upscale_note), method)


def _open_source(source: bytes, factor: int) -> tuple[Image.Image, str]:
    """Return the pixels as RGB, and the recipe text."""
    try:
        with Image.open(BytesIO(source), formats=("PNG", "JPEG", "WEBP")) as picture:
            width, height = picture.width * factor, picture.height * factor
            if max(width, height) > MAX_SIDE:
                raise JobRejected(f"{width}×{height} is more than {MAX_SIDE} pixels a side.", "member")
            return picture.convert("RGB"), str(picture.info.get("parameters", ""))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise JobRejected("The picture to upscale cannot be read.", "us") from error
