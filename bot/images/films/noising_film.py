"""Films of a picture dissolving into noise by the forward process, in pixel space.

q(x_t | x_0) = N(√ᾱ_t · x_0, (1 - ᾱ_t) · I) (Ho et al. 2020, equation 4), with pixels from -1 to 1 and one draw of noise
for all t: each frame has that distribution, and the eye can follow it. A model adds noise to latents, and a ladder
shows estimates of x0. So this noise is not the noise from which the picture was made, nor the noise at the start of its
film.

CPU-bound: async callers use a thread.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from bot.images.films.animation import (
    MAX_FILM_BYTES,
    TURN_MS,
    Animation,
    Size,
    bound_size,
    encode_to_fit,
    join_animations,
)
from bot.images.films.formats import FilmFormat, check_film_format
from bot.images.films.ladder_film import animate_ladders
from bot.images.grid import CELL_SIZE, scale_size
from bot.images.image_codec import decode_image, resize_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FRAMES = 48
MAX_FRAMES = 96
MAX_SIDE = 512  # pixels: noise does not compress, and more of it shows nothing new
COSINE_OFFSET = 0.008  # s of the cosine schedule


def render_dissolve(
    png: bytes,
    seed: int,
    *,
    frames: int = FRAMES,
    alphas: Sequence[float] = (),
    film_format: FilmFormat = "webp",
    limit: int = MAX_FILM_BYTES,
) -> bytes:
    """Return an animation of a picture becoming noise, at most `limit` bytes.

    The first frame is the picture; the last is held. `seed`: of the noise, 0 or more. `frames`: 2 to 96. `alphas`: a
    model's schedule, ᾱ of each of its steps from clear to noisy (diffusers: `alphas_cumprod`), of any length; empty
    means `cosine_alpha`. Raises `UnreadableImage` for bytes that are no picture, `ValueError` for numbers out of range,
    `UserError` as `encode_to_fit` does.
    """
    check_film_format(film_format)
    return encode_to_fit(animate_dissolve(png, seed, frames=frames, alphas=alphas), film_format, limit)


def render_dissolve_and_back(
    png: bytes,
    ladder: bytes,
    seed: int,
    *,
    frames: int = FRAMES,
    alphas: Sequence[float] = (),
    film_format: FilmFormat = "webp",
    limit: int = MAX_FILM_BYTES,
) -> bytes:
    """Return `render_dissolve`, then the film of the picture's ladder, which ends with the picture. Raises what both
    raise.
    """
    check_film_format(film_format)
    return_film = animate_ladders([ladder], finals=[png])
    return_film = replace(return_film, size=bound_size(return_film.size, MAX_SIDE))
    return encode_to_fit(
        join_animations(animate_dissolve(png, seed, frames=frames, alphas=alphas), return_film), film_format, limit
    )


def animate_dissolve(png: bytes, seed: int, *, frames: int = FRAMES, alphas: Sequence[float] = ()) -> Animation:
    """Return the frames of `render_dissolve`. It draws noise at a frame's size: scaled down afterwards, noise would
    turn grey.
    """
    levels = _alpha_levels(frames, alphas)
    pixels = decode_image(png)
    size = scale_size(*pixels.size, CELL_SIZE, MAX_SIDE)
    pixels = resize_image(pixels, size)

    def draw(index: int, frame_size: Size) -> Image.Image:
        clean = resize_image(pixels, frame_size)
        return clean if index == 0 else to_image(add_noise(np.asarray(clean), seed, levels[index]))

    return Animation(frames, size, draw, {0: TURN_MS})


def add_noise(pixels: NDArray[np.uint8], seed: int, level: float) -> NDArray[np.float32]:
    """Return x_t for ᾱ_t = `level`, of pixels 0 to 255. A seed and a shape give the same noise at every level."""
    noise = np.random.default_rng(seed).standard_normal(pixels.shape, dtype=np.float32)
    clean = pixels.astype(np.float32) / 127.5 - 1.0
    return (math.sqrt(level) * clean + math.sqrt(1.0 - level) * noise).astype(np.float32, copy=False)


def to_image(values: NDArray[np.float32]) -> Image.Image:
    """Return values from -1 to 1 as a picture; values outside are clipped."""
    return Image.fromarray(np.clip(np.rint((values + 1.0) * 127.5), 0, 255).astype(np.uint8))


def cosine_alpha(fraction: float) -> float:
    """Return ᾱ at a fraction of the schedule, from 1 to 0 (Nichol and Dhariwal 2021, equation 17)."""
    value, start = (
        math.cos((point + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2 for point in (fraction, 0.0)
    )
    return min(1.0, max(0.0, value / start)) if fraction < 1.0 else 0.0


def derive_seed(picture: bytes) -> int:
    """Return a 32-bit seed derived from the picture: it dissolves in the same way each time."""
    return int.from_bytes(hashlib.sha256(picture).digest()[:4], "big")


def _alpha_levels(frames: int, alphas: Sequence[float]) -> list[float]:
    """Return ᾱ of each frame: first the picture, then levels spread evenly over the schedule's steps."""
    if not 2 <= frames <= MAX_FRAMES:
        raise ValueError(f"2 to {MAX_FRAMES} frames, not {frames}")
    if not alphas:
        return [cosine_alpha(index / (frames - 1)) for index in range(frames)]
    if not all(0.0 <= after <= before <= 1.0 for before, after in zip(alphas, [*alphas[1:], alphas[-1]], strict=True)):
        raise ValueError("a schedule's alphas lie between 1 and 0 and never grow")
    last = len(alphas) - 1
    return [1.0, *(alphas[round(last * index / (frames - 1))] for index in range(1, frames))]
