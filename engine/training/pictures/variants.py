"""Renders many variants of a drawing: backgrounds, hues, sizes, positions, each with a matching caption.

Knows pixels; a variant is a pure function of (drawing, number, seed). Numbers from `HELD_BACK` on are never trained on;
they are for validation.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from engine.training.pictures.artwork import Artwork
from engine.training.pictures.captions import COLOURS, Look, caption, pair_held_out

SIDE = 64
HELD_BACK = 1_000_000
BACKGROUNDS = {
    "white": (255, 255, 255), "black": (12, 12, 14), "grey": (128, 128, 130), "red": (214, 40, 40),
    "orange": (245, 140, 30), "yellow": (250, 215, 60), "green": (60, 165, 75), "blue": (45, 105, 220),
    "purple": (130, 70, 190), "pink": (245, 160, 195), "brown": (120, 75, 45), "teal": (30, 150, 150),
}  # fmt: skip
HUES = {"red": 0, "orange": 28, "yellow": 52, "green": 125, "cyan": 185, "blue": 220, "purple": 275, "pink": 325}
REHUED = 0.18
SYMBOLS = 8
# Variants by group: people ask most for animals and food, seldom for "up-left arrow"; but rare ones are not learnt.
SPREAD = {0: 28, 1: 18, 3: 42, 4: 38, 5: 28, 6: 28, 7: 32, SYMBOLS: 12}
# Three styles of one word are three answers to one prompt. The rounded style dominates, so that few steps of training
# give one clear picture and not the mean of three.
STYLE_SHARE = {"3d render": 1.0, "soft shading": 0.16, "flat design": 0.1}
POSED = 0.75  # share of centred, usual-sized, unchanged drawings: what a plain prompt should give
USUAL_SCALE = 0.92


@dataclass(frozen=True)
class Variant:
    """A rendered variant; `pixels` is uint8 [64, 64, 3]."""

    pixels: np.ndarray
    caption: str
    key: str
    licence: str


def diet() -> str:
    """Return hex digits that change with the mix of artwork that a network is trained on."""
    return f"{zlib.crc32(repr((SPREAD, STYLE_SHARE, POSED, REHUED)).encode()):08x}"


def numbered(pictures: Sequence[Artwork], per_picture: int | None = None) -> list[tuple[int, int]]:
    """Return all (picture, number) pairs to train on; `per_picture` overrides the counts by group."""
    counts = (per_picture or _spread(art) for art in pictures)
    return [(index, number) for index, count in enumerate(counts) for number in range(count)]


def _spread(art: Artwork) -> int:
    clock = "o'clock" in art.words.label or art.words.label.endswith("-thirty")
    usual = SPREAD[SYMBOLS] if clock else SPREAD.get(art.group, 16)
    return max(1, round(usual * STYLE_SHARE.get(art.style, 1.0)))


def variant(art: Artwork, number: int, seed: int) -> Variant:
    """Render the drawing's variant of this number: the same bytes and caption on every machine."""
    rng = np.random.default_rng([seed, zlib.crc32(art.key.encode()), number])
    pixels, hue = _hued(art, rng)
    background = "white" if rng.random() < 0.5 else str(rng.choice([name for name in BACKGROUNDS if name != "white"]))
    posed = rng.random() < POSED
    size, scale = ("", USUAL_SCALE) if posed else _size(rng)
    sided = art.group == SYMBOLS or not {"left", "right"}.isdisjoint(art.words.label.split())
    if not (posed or sided) and rng.random() < 0.5:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    composed = compose(pixels, scale, 0.0 if posed else 0.6, BACKGROUNDS[background], rng)
    said = caption(art.words, art.group, Look(hue, art.style, size, background), rng)
    return Variant(composed, said, art.key, art.licence)


def dominant_hue(pixels: Image.Image) -> float | None:
    """Return the hue in degrees of most opaque, saturated pixels; None if less than a third are saturated."""
    hsv = np.asarray(pixels.convert("RGB").convert("HSV"), dtype=np.float32)
    seen = np.asarray(pixels.getchannel("A")) > 128
    vivid = seen & (hsv[..., 1] > 90) & (hsv[..., 2] > 60)
    if vivid.sum() < max(1, seen.sum()) / 3:
        return None
    angles = hsv[..., 0][vivid] * (2 * np.pi / 256)
    counts, edges = np.histogram(angles, bins=24, range=(0, 2 * np.pi))
    peak = edges[counts.argmax()] + np.pi / 24
    near = angles[np.cos(angles - peak) > np.cos(np.pi / 8)]
    if near.size < 0.6 * angles.size:
        return None
    return float(np.degrees(np.arctan2(np.sin(near).mean(), np.cos(near).mean())) % 360)


def hue_name(degrees: float) -> str:
    """Return the nearest named hue, around the circle."""
    return min(HUES, key=lambda name: abs((degrees - HUES[name] + 180) % 360 - 180))


def compose(
    pixels: Image.Image, scale: float, shift: float, colour: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """Render on a colour, uint8 [64, 64, 3]: `scale` of the side long, off centre by up to `shift` of the margin."""
    longest = max(pixels.size)
    width, height = (max(1, round(side * scale * SIDE / longest)) for side in pixels.size)
    placed = pixels.resize((width, height), Image.Resampling.BICUBIC)
    room = np.abs(np.array([SIDE - width, SIDE - height])) / 2
    left, top = np.round((SIDE - np.array([width, height])) / 2 + rng.uniform(-shift, shift, 2) * room).astype(int)
    shade = tuple(
        int(np.clip(part + rng.integers(-5, 6), 0, 255)) if colour != (255, 255, 255) else 255 for part in colour
    )
    canvas = Image.new("RGBA", (SIDE, SIDE), (*shade, 255))
    layer = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    layer.paste(placed, (int(left), int(top)))
    return np.asarray(Image.alpha_composite(canvas, layer).convert("RGB"))


def _hued(art: Artwork, rng: np.random.Generator) -> tuple[Image.Image, str]:
    chance, pick = rng.random(), str(rng.choice(list(HUES)))
    colourful = not COLOURS.isdisjoint(art.words.label.split())
    if chance > REHUED + 0.2 or colourful or (own := dominant_hue(art.pixels)) is None:
        return art.pixels, ""
    if chance > REHUED:  # its own colour, named in the caption: red cars teach "red car", too
        name = hue_name(own)
        usable = name not in ("orange", "yellow") and not pair_held_out(name, art.words)
        return art.pixels, name if usable else ""
    if pair_held_out(pick, art.words):
        return art.pixels, ""
    return _rotated(art.pixels, HUES[pick] - own), pick


def _rotated(pixels: Image.Image, degrees: float) -> Image.Image:
    hue, saturation, value = pixels.convert("RGB").convert("HSV").split()
    turned = (np.asarray(hue, dtype=np.int32) + round(degrees * 256 / 360)) % 256
    moved = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
    moved.putalpha(pixels.getchannel("A"))
    return moved


def _size(rng: np.random.Generator) -> tuple[str, float]:
    chance = rng.random()
    if chance < 0.25:
        return "small", float(rng.uniform(0.42, 0.6))
    if chance < 0.45:
        return "close-up", float(rng.uniform(1.2, 1.5))
    return "", float(rng.uniform(0.82, 1.0))
