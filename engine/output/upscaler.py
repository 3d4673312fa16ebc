"""Upscales finished pictures, with the super-resolver if there is one, else with Lanczos, which adds no detail.

If the result would be too large, it refuses the picture before it decodes it.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from engine.contract import UpscaleMethod
from engine.device.core_turns import limit_to_one_core
from engine.picture_files import encode_upscaled, open_source, upscale_by_lanczos
from engine.upscaling.super_resolver import OnTile, SuperResolver


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
    source: bytes,
    factor: int,
    method: UpscaleMethod = "lanczos",
    resolver: SuperResolver | None = None,
    on_tile: OnTile | None = None,
) -> UpscaledPicture:
    """Return the PNG `factor` times as wide and high; its recipe stays, with the upscale noted. Raises `JobRejected`.

    Without a `resolver` "gan" falls back to Lanczos, and the result says so.
    """
    if method == "lanczos" or resolver is None:
        return UpscaledPicture(upscale_by_lanczos(source, factor), "lanczos")
    picture, text = open_source(source, factor)
    upscaled = resolver.upscale(picture, factor, on_tile)
    return UpscaledPicture(encode_upscaled(upscaled, text, factor, resolver.name), method)
