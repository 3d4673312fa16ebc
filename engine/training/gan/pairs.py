"""Training pairs for the super-resolver: large pictures, and small ones, scaled down or decoded by our autoencoder.

Knows pictures, charts and an autoencoder; knows nothing of the network. The pairs are built once, by seed, so a step
costs only the network.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image

from engine.training.gan.coding import decoded
from engine.training.pictures.artwork import Artwork
from engine.training.pictures.charts import chart
from engine.training.pictures.pixels import Told, as_images, as_pictures
from engine.training.pictures.variants import BACKGROUNDS, USUAL_SCALE

SCALE, SIDE = 4, 256
SMALL = SIDE // SCALE
CHARTS = 0.2  # share of the pictures
DETAILED = 192  # smallest side of a drawing in px; a smaller one would be blurred and teach blur
NOISE = 0.6  # the most noise, as a share of the posterior's deviation, as in the decoder's training
JPEG = 0.2
REDUCED = (Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Pairs:
    """uint8 pictures: `large` [n, 256, 256, 3]; `clean` and `mended` [n, 64, 64, 3] are small versions of them."""

    large: np.ndarray
    clean: np.ndarray
    mended: np.ndarray

    def __len__(self) -> int:
        return len(self.large)


def composed(art: Artwork, rng: np.random.Generator) -> np.ndarray:
    """Render a drawing on one colour, uint8 [256, 256, 3]; at random, exchange its colour channels."""
    scale = USUAL_SCALE if rng.random() < 0.5 else float(rng.uniform(0.6, 1.0))
    longest = max(art.pixels.size)
    width, height = (max(1, round(side * scale * SIDE / longest)) for side in art.pixels.size)
    placed = art.pixels.resize((width, height), Image.Resampling.LANCZOS)
    named = BACKGROUNDS[str(rng.choice(list(BACKGROUNDS)))]
    shade = np.clip(named + rng.integers(-20, 21, 3), 0, 255)
    colour = (255, 255, 255) if rng.random() < 0.3 else (int(shade[0]), int(shade[1]), int(shade[2]))
    layer = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    room = np.array([SIDE - width, SIDE - height])
    left, top = (room * (0.5 if rng.random() < 0.5 else rng.random(2))).astype(int)
    layer.paste(placed, (int(left), int(top)))
    whole = Image.alpha_composite(Image.new("RGBA", (SIDE, SIDE), (*colour, 255)), layer)
    pixels = np.asarray(whole.convert("RGB"))
    return pixels[..., rng.permutation(3)] if rng.random() < 0.25 else pixels


def of_artwork(drawings: Sequence[Artwork], count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Render `count` large pictures of the drawings with enough detail, in turn. Raises ValueError if none has it."""
    fine = [art for art in drawings if max(art.pixels.size) >= DETAILED]
    if not fine:
        raise ValueError(f"no drawing has {DETAILED} pixels a side: there is nothing to learn detail from")
    order = rng.permutation(len(fine))
    return (composed(fine[order[number % len(fine)]], rng) for number in range(count))


def squares(pictures: Sequence[Image.Image], count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Cut `count` squares of 256 px out of pictures of any size: the whole picture or a part of it."""
    for number in range(count):
        picture = pictures[number % len(pictures)].convert("RGB")
        shorter = min(picture.size)
        side = min(shorter, max(SIDE, round(shorter * float(rng.uniform(0.4, 1.0)))))
        left, top = (int(rng.integers(0, length - side + 1)) for length in picture.size)
        part = picture.crop((left, top, left + side, top + side))
        yield np.asarray(part.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def pairs(
    large: Iterator[np.ndarray],
    count: int,
    autoencoder: AutoencoderKL | None,
    seed: int,
    charts: float = CHARTS,
    told: Told = lambda done, of: None,
) -> Pairs:
    """Build pairs of `count` pictures, a share `charts` of them charts; the same for the same seed."""
    rng = np.random.default_rng([seed, 256])
    drawn = rng.random(count) < charts
    pictures = [chart(rng, SIDE) if one else next(large) for one in drawn]
    clean = [_reduced(picture, rng, plainly=one) for picture, one in zip(pictures, drawn, strict=True)]
    mended: list[np.ndarray] = []
    for start in range(0, count, 32):
        some = np.stack(clean[start : start + 32])
        back = some if autoencoder is None else _returned(autoencoder, some, (seed << 32) + start)
        mended += [_jpeg(one, rng) for one in back]
        told(min(start + 32, count), count)
    return Pairs(np.stack(pictures), np.stack([_jpeg(one, rng) for one in clean]), np.stack(mended))


def _reduced(picture: np.ndarray, rng: np.random.Generator, *, plainly: bool) -> np.ndarray:
    """Scale down; `plainly` by the mean of each area, the only way that keeps a chart's edges clean."""
    how = REDUCED[0 if plainly else int(rng.integers(len(REDUCED)))]
    return np.asarray(Image.fromarray(picture).resize((SMALL, SMALL), how))


def _jpeg(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= JPEG:
        return picture
    kept = io.BytesIO()
    Image.fromarray(picture).save(kept, "JPEG", quality=int(rng.integers(70, 96)))
    return np.asarray(Image.open(kept).convert("RGB"))


@torch.inference_mode()
def _returned(autoencoder: AutoencoderKL, pictures: np.ndarray, seed: int) -> np.ndarray:
    """Encode, add noise of any strength up to `NOISE`, and decode."""
    chance = torch.Generator().manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = autoencoder.encode(as_images(pictures), return_dict=False)[0]
        mean, deviation = posterior.mean.float(), posterior.std.float()
        strength = torch.rand((len(mean), 1, 1, 1), generator=chance) * NOISE
        images = decoded(autoencoder, mean + strength * deviation * torch.randn(mean.shape, generator=chance))
    return as_pictures(images)
