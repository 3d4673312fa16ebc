"""Upscales of finished pictures: how large, and what they cost. Pure."""

from __future__ import annotations

from bot.domain.errors import UserError
from engine.contract import UpscaleMethod, UpscaleTask

MAX_SIDE = 4096  # pixels
UPSCALE_FACTORS = (4, 3, 2)
LANCZOS_SECONDS_PER_MP = 0.05  # for each megapixel of the enlarged picture; the transfer costs one megapixel more
SUPER_RESOLVER_MS_PER_MP = (
    14_000.0  # for each megapixel of the source, by the built-in super-resolver, as measured on one slow core
)


def largest_upscale(sha256: str, width: int, height: int, method: UpscaleMethod = "gan") -> UpscaleTask:
    """Return the largest upscale that fits. Raises `UserError` if none does."""
    for factor in UPSCALE_FACTORS:
        if max(width, height) * factor <= MAX_SIDE:
            return UpscaleTask(source=sha256, factor=factor, method=method)
    raise UserError(f"At {width} × {height} pixels this picture is as large as it gets.")


def upscale_notes(task: UpscaleTask, width: int, height: int) -> tuple[str, ...]:
    """Return a note if the default factor would be too large."""
    if task.factor == UPSCALE_FACTORS[0]:
        return ()
    side = UPSCALE_FACTORS[0] * max(width, height)
    return (
        f"×{UPSCALE_FACTORS[0]} would be {side} pixels a side, and at most {MAX_SIDE} fit: it becomes ×{task.factor}.",
    )


def upscale_cost(
    task: UpscaleTask, width: int, height: int, ms_per_megapixel: float = SUPER_RESOLVER_MS_PER_MP
) -> float:
    """Return the estimated device-seconds of an upscale. `ms_per_megapixel`: the super-resolver's time per megapixel of
    the source.
    """
    megapixels = width * height / 1e6
    resolver_seconds = ms_per_megapixel * megapixels / 1000 if task.method == "gan" else 0.0
    return resolver_seconds + LANCZOS_SECONDS_PER_MP * (1.0 + megapixels * task.factor**2)
