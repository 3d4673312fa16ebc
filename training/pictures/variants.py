"""Renders many variants of a drawing: backgrounds, hues, sizes, positions, each with a matching caption.

A variant is a pure function of (drawing, number, seed). Numbers from `FIRST_VALIDATION_NUMBER` on are never trained on;
they are for validation.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from training.pictures.artwork import Artwork
from training.pictures.captions import COLOURS, Appearance, is_held_out_pair, make_caption

SIDE = 64
FIRST_VALIDATION_NUMBER = 1_000_000
BACKGROUND_COLOURS = {
    "white": (255, 255, 255), "black": (12, 12, 14), "grey": (128, 128, 130), "red": (214, 40, 40),
    "orange": (245, 140, 30), "yellow": (250, 215, 60), "green": (60, 165, 75), "blue": (45, 105, 220),
    "purple": (130, 70, 190), "pink": (245, 160, 195), "brown": (120, 75, 45), "teal": (30, 150, 150),
}  # fmt: skip
HUE_DEGREES = {"red": 0, "orange": 28, "yellow": 52, "green": 125, "cyan": 185, "blue": 220, "purple": 275, "pink": 325}
REHUED_SHARE = 0.18
SYMBOL_GROUP = 8
# Variants by group: people ask most for animals and food, seldom for "up-left arrow"; but rare ones are not learnt.
VARIANTS_BY_GROUP = {0: 28, 1: 18, 3: 42, 4: 38, 5: 28, 6: 28, 7: 32, SYMBOL_GROUP: 12}
# Of each drawing in the rounded style the network has seen ten times as many variants in its first trainings, as
# `STYLE_SHARE` was 1.0, 0.16 and 0.1 then.
STYLE_SHARE = {"3d render": 0.36, "soft shading": 0.6, "flat design": 0.6}
# With --focus: draws of the drawings to learn better, and the styles of all others, which keep the rest learnt.
MAIN_STYLE = "3d render"
FOCUS_GROUP = "focus"
FOCUS_SHARE = 0.35
DRAW_SHARE = {MAIN_STYLE: 0.46, "soft shading": 0.38, "flat design": 0.16}
POSED_SHARE = 0.75  # share of centred, usual-sized, unchanged drawings: what a plain prompt should give
USUAL_SCALE = 0.92


@dataclass(frozen=True)
class Variant:
    """A rendered variant; `pixels` is uint8 [side, side, 3]."""

    pixels: np.ndarray
    caption: str
    key: str
    licence: str


@dataclass(frozen=True)
class FocusedDrawing:
    """A drawing to learn better: its label in one style."""

    label: str
    style: str = MAIN_STYLE


def share_draws(
    pictures: Sequence[Artwork],
    pairs: Sequence[tuple[int, int]],
    focus: Collection[FocusedDrawing],
    focus_share: float = FOCUS_SHARE,
) -> np.ndarray:
    """Return the probability of each (picture, number) pair in a draw, float64 [n].

    `focus_share` of the draws are drawings of `focus`; all other draws follow `DRAW_SHARE`.
    """
    groups = [_name_draw_group(pictures[index], focus) for index, _ in pairs]
    shares = {FOCUS_GROUP: focus_share, **{style: share * (1 - focus_share) for style, share in DRAW_SHARE.items()}}
    counts = Counter(groups)
    weights = np.array([shares[group] / counts[group] for group in groups])
    return weights / weights.sum()


def _name_draw_group(drawing: Artwork, focus: Collection[FocusedDrawing]) -> str:
    return FOCUS_GROUP if FocusedDrawing(drawing.description.label, drawing.style) in focus else drawing.style


def mix_fingerprint() -> str:
    """Return hex digits that change with the mix of artwork that a network is trained on."""
    shares = VARIANTS_BY_GROUP, STYLE_SHARE, POSED_SHARE, REHUED_SHARE
    return f"{zlib.crc32(repr(shares).encode()):08x}"


def number_variants(pictures: Sequence[Artwork], per_picture: int | None = None) -> list[tuple[int, int]]:
    """Return all (picture, number) pairs to train on; `per_picture` overrides the counts by group."""
    counts = (per_picture or _variant_count(drawing) for drawing in pictures)
    return [(index, number) for index, count in enumerate(counts) for number in range(count)]


def _variant_count(drawing: Artwork) -> int:
    is_clock = "o'clock" in drawing.description.label or drawing.description.label.endswith("-thirty")
    base_count = VARIANTS_BY_GROUP[SYMBOL_GROUP] if is_clock else VARIANTS_BY_GROUP.get(drawing.group, 16)
    return max(1, round(base_count * STYLE_SHARE.get(drawing.style, 1.0)))


def render_variant(drawing: Artwork, number: int, seed: int, side: int = SIDE) -> Variant:
    """Render the drawing's variant of this number: the same bytes and caption on every machine.

    Another `side` changes neither the caption nor the composition.
    """
    rng = np.random.default_rng([seed, zlib.crc32(drawing.key.encode()), number])
    pixels, hue = _change_hue(drawing, rng)
    other_names = [name for name in BACKGROUND_COLOURS if name != "white"]
    background = "white" if rng.random() < 0.5 else str(rng.choice(other_names))
    is_posed = rng.random() < POSED_SHARE
    size, scale = ("", USUAL_SCALE) if is_posed else _random_size(rng)
    has_direction = drawing.group == SYMBOL_GROUP or not {"left", "right"}.isdisjoint(drawing.description.label.split())
    if not (is_posed or has_direction) and rng.random() < 0.5:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    rendered = compose(pixels, scale, 0.0 if is_posed else 0.6, BACKGROUND_COLOURS[background], rng, side)
    text = make_caption(drawing.description, drawing.group, Appearance(hue, drawing.style, size, background), rng)
    return Variant(rendered, text, drawing.key, drawing.licence)


def find_dominant_hue(pixels: Image.Image) -> float | None:
    """Return the hue in degrees of most opaque, saturated pixels; None if less than a third are saturated."""
    hsv = np.asarray(pixels.convert("RGB").convert("HSV"), dtype=np.float32)
    opaque = np.asarray(pixels.getchannel("A")) > 128
    is_vivid = opaque & (hsv[..., 1] > 90) & (hsv[..., 2] > 60)
    if is_vivid.sum() < max(1, opaque.sum()) / 3:
        return None
    angles = hsv[..., 0][is_vivid] * (2 * np.pi / 256)
    counts, edges = np.histogram(angles, bins=24, range=(0, 2 * np.pi))
    peak = edges[counts.argmax()] + np.pi / 24
    near_peak = angles[np.cos(angles - peak) > np.cos(np.pi / 8)]
    if near_peak.size < 0.6 * angles.size:
        return None
    return float(np.degrees(np.arctan2(np.sin(near_peak).mean(), np.cos(near_peak).mean())) % 360)


def nearest_hue(degrees: float) -> str:
    """Return the nearest named hue, around the circle."""
    return min(HUE_DEGREES, key=lambda name: abs((degrees - HUE_DEGREES[name] + 180) % 360 - 180))


def compose(
    pixels: Image.Image,
    scale: float,
    shift: float,
    colour: tuple[int, int, int],
    rng: np.random.Generator,
    side: int = SIDE,
) -> np.ndarray:
    """Render on a colour, uint8 [side, side, 3]: `scale` of `side` long, off centre by up to `shift` of the margin."""
    longest = max(pixels.size)
    width, height = (max(1, round(length * scale * side / longest)) for length in pixels.size)
    resized = pixels.resize((width, height), Image.Resampling.BICUBIC)
    margin = np.abs(np.array([side - width, side - height])) / 2
    left, top = np.round((side - np.array([width, height])) / 2 + rng.uniform(-shift, shift, 2) * margin).astype(int)
    shade = tuple(
        int(np.clip(channel + rng.integers(-5, 6), 0, 255)) if colour != (255, 255, 255) else 255 for channel in colour
    )
    canvas = Image.new("RGBA", (side, side), (*shade, 255))
    layer = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    layer.paste(resized, (int(left), int(top)))
    return np.asarray(Image.alpha_composite(canvas, layer).convert("RGB"))


def _change_hue(drawing: Artwork, rng: np.random.Generator) -> tuple[Image.Image, str]:
    draw = rng.random()
    new_hue = str(rng.choice(list(HUE_DEGREES)))
    names_colour = not COLOURS.isdisjoint(drawing.description.label.split())
    if draw > REHUED_SHARE + 0.2 or names_colour or (own_hue := find_dominant_hue(drawing.pixels)) is None:
        return drawing.pixels, ""
    if draw > REHUED_SHARE:  # its own colour, named in the caption: red cars teach "red car", too
        name = nearest_hue(own_hue)
        is_usable = name not in ("orange", "yellow") and not is_held_out_pair(name, drawing.description)
        return drawing.pixels, name if is_usable else ""
    if is_held_out_pair(new_hue, drawing.description):
        return drawing.pixels, ""
    return _rotate_hue(drawing.pixels, HUE_DEGREES[new_hue] - own_hue), new_hue


def _rotate_hue(pixels: Image.Image, degrees: float) -> Image.Image:
    hue, saturation, value = pixels.convert("RGB").convert("HSV").split()
    rotated_hue = (np.asarray(hue, dtype=np.int32) + round(degrees * 256 / 360)) % 256
    recoloured = Image.merge("HSV", (Image.fromarray(rotated_hue.astype(np.uint8)), saturation, value)).convert("RGB")
    recoloured.putalpha(pixels.getchannel("A"))
    return recoloured


def _random_size(rng: np.random.Generator) -> tuple[str, float]:
    draw = rng.random()
    if draw < 0.25:
        return "small", float(rng.uniform(0.42, 0.6))
    if draw < 0.45:
        return "close-up", float(rng.uniform(1.2, 1.5))
    return "", float(rng.uniform(0.82, 1.0))


OTHER_SCALES = (0.88, 0.96)  # two scales for a second rendering of a drawing; shifts would change it far more


def render_posed(art: Artwork, scale: float = USUAL_SCALE) -> np.ndarray:
    """Render the drawing on white, centred: uint8 [64, 64, 3]."""
    unused_rng = np.random.default_rng(0)  # unused: white has one shade, and the position is fixed
    return compose(art.pixels, scale, 0.0, BACKGROUND_COLOURS["white"], unused_rng)


def render_posed_rescaled(drawings: Sequence[Artwork]) -> np.ndarray:
    """Render each drawing a little smaller and a little larger than in training: the judge has seen neither exactly.

    Returns uint8 [2 · n, 64, 64, 3]: all drawings at the one scale, then all at the other.
    """
    return np.stack([render_posed(drawing, scale) for scale in OTHER_SCALES for drawing in drawings])
