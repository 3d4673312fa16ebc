"""Training pairs for the super-resolver: large pictures, and small ones, scaled down or decoded by our autoencoder.

It builds the pairs once, by seed, so a step costs only the network.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image

from engine.models.judge import as_images
from training.core.device import mixed_precision
from training.gan.latent_coding import decode_images
from training.pictures.artwork import Artwork
from training.pictures.charts import draw_chart
from training.pictures.masked_pictures import ProgressCallback, as_pictures
from training.pictures.variants import BACKGROUND_COLOURS, USUAL_SCALE

UPSCALE_FACTOR = 4
LARGE_SIDE = 256
SMALL_SIDE = LARGE_SIDE // UPSCALE_FACTOR
CHART_SHARE = 0.2  # share of the pictures
MIN_DETAILED_SIDE = 192  # smallest side of a drawing in px; a smaller one would be blurred and teach blur
MAX_NOISE = 0.6  # the most noise, as a share of the posterior's deviation, as in the decoder's training
JPEG_SHARE = 0.2
DOWNSCALE_FILTERS = (Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class UpscalerPairs:
    """uint8 pictures: `large` [n, 256, 256, 3]; `clean` and `decoded` [n, 64, 64, 3] are small versions of them."""

    large: np.ndarray
    clean: np.ndarray
    decoded: np.ndarray

    def __len__(self) -> int:
        return len(self.large)


def render_large(drawing: Artwork, rng: np.random.Generator) -> np.ndarray:
    """Render a drawing on one colour, uint8 [256, 256, 3]; at random, exchange its colour channels."""
    scale = USUAL_SCALE if rng.random() < 0.5 else float(rng.uniform(0.6, 1.0))
    longest = max(drawing.pixels.size)
    width, height = (max(1, round(side * scale * LARGE_SIDE / longest)) for side in drawing.pixels.size)
    resized = drawing.pixels.resize((width, height), Image.Resampling.LANCZOS)
    base_colour = BACKGROUND_COLOURS[str(rng.choice(list(BACKGROUND_COLOURS)))]
    shade = np.clip(base_colour + rng.integers(-20, 21, 3), 0, 255)
    colour = (255, 255, 255) if rng.random() < 0.3 else (int(shade[0]), int(shade[1]), int(shade[2]))
    layer = Image.new("RGBA", (LARGE_SIDE, LARGE_SIDE), (0, 0, 0, 0))
    margin = np.array([LARGE_SIDE - width, LARGE_SIDE - height])
    left, top = (margin * (0.5 if rng.random() < 0.5 else rng.random(2))).astype(int)
    layer.paste(resized, (int(left), int(top)))
    composite = Image.alpha_composite(Image.new("RGBA", (LARGE_SIDE, LARGE_SIDE), (*colour, 255)), layer)
    pixels = np.asarray(composite.convert("RGB"))
    return pixels[..., rng.permutation(3)] if rng.random() < 0.25 else pixels


def render_drawings(drawings: Sequence[Artwork], count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Render `count` large pictures of the drawings with enough detail, in turn. Raises ValueError if none has it."""
    detailed = [drawing for drawing in drawings if max(drawing.pixels.size) >= MIN_DETAILED_SIDE]
    if not detailed:
        raise ValueError(f"no drawing has {MIN_DETAILED_SIDE} pixels a side: there is nothing to learn detail from")
    order: list[int] = rng.permutation(len(detailed)).tolist()
    return (render_large(detailed[order[number % len(detailed)]], rng) for number in range(count))


def cut_squares(pictures: Sequence[Image.Image], count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Cut `count` squares of 256 px out of pictures of any size: the whole picture or a part of it."""
    for number in range(count):
        picture = pictures[number % len(pictures)].convert("RGB")
        shorter = min(picture.size)
        side = min(shorter, max(LARGE_SIDE, round(shorter * float(rng.uniform(0.4, 1.0)))))
        left, top = (int(rng.integers(0, length - side + 1)) for length in picture.size)
        crop = picture.crop((left, top, left + side, top + side))
        yield np.asarray(crop.resize((LARGE_SIDE, LARGE_SIDE), Image.Resampling.LANCZOS))


def build_pairs(
    large: Iterator[np.ndarray],
    count: int,
    autoencoder: AutoencoderKL | None,
    seed: int,
    chart_share: float = CHART_SHARE,
    on_progress: ProgressCallback = lambda finished, total: None,
) -> UpscalerPairs:
    """Build pairs of `count` pictures, a share `chart_share` of them charts; the same for the same seed."""
    rng = np.random.default_rng([seed, 256])
    is_chart = rng.random(count) < chart_share
    pictures = [draw_chart(rng, LARGE_SIDE) if chosen else next(large) for chosen in is_chart]
    clean = [
        _downscale(picture, rng, use_box_filter=chosen) for picture, chosen in zip(pictures, is_chart, strict=True)
    ]
    decoded_pictures: list[np.ndarray] = []
    for start in range(0, count, 32):
        batch = np.stack(clean[start : start + 32])
        decoded_batch = batch if autoencoder is None else _decode_noisy(autoencoder, batch, (seed << 32) + start)
        decoded_pictures += [_compress_at_random(chosen, rng) for chosen in decoded_batch]
        on_progress(min(start + 32, count), count)
    return UpscalerPairs(
        np.stack(pictures), np.stack([_compress_at_random(chosen, rng) for chosen in clean]), np.stack(decoded_pictures)
    )


def _downscale(picture: np.ndarray, rng: np.random.Generator, *, use_box_filter: bool) -> np.ndarray:
    """Scale down; with `use_box_filter` by the mean of each area, the only way that keeps a chart's edges clean."""
    resampling = DOWNSCALE_FILTERS[0 if use_box_filter else int(rng.integers(len(DOWNSCALE_FILTERS)))]
    return np.asarray(Image.fromarray(picture).resize((SMALL_SIDE, SMALL_SIDE), resampling))


def _compress_at_random(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= JPEG_SHARE:
        return picture
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=int(rng.integers(70, 96)))
    return np.asarray(Image.open(buffer).convert("RGB"))


@torch.inference_mode()
def _decode_noisy(autoencoder: AutoencoderKL, pictures: np.ndarray, seed: int) -> np.ndarray:
    """Encode, add noise of any strength up to `MAX_NOISE`, and decode."""
    generator = torch.Generator().manual_seed(seed)
    device = next(autoencoder.parameters()).device
    with mixed_precision(device):
        posterior = autoencoder.encode(as_images(pictures).to(device), return_dict=False)[0]
        mean = posterior.mean.float()
        deviation = posterior.std.float()
        strength = torch.rand((len(mean), 1, 1, 1), generator=generator) * MAX_NOISE
        noise = torch.randn(mean.shape, generator=generator)
        images = decode_images(autoencoder, mean + strength.to(device) * deviation * noise.to(device))
    return as_pictures(images)
