"""Experiments with the autoencoder: a picture's round trip, and two pictures mixed as pixels and as latents."""

from __future__ import annotations

import math

import torch
from PIL import Image

from engine.lab.mixing import lerp, noised, psnr, turned
from engine.lab.pictures import channels, picture_of, pixels, square
from engine.lab.room import Room, Shown
from engine.lab.sheet import Tile, sheet
from engine.sampling import level

AMPLIFIED = 4


def roundtrip(room: Room, picture: Image.Image) -> Shown:
    """Show the picture, the decoded picture, their difference, and the latents."""
    family = room.family
    before = square(picture, family.size)
    latents = family.encode_image(before)
    after = family.decode(latents)
    difference = picture_of(AMPLIFIED * (pixels(after) - pixels(before)).abs())
    decibels = psnr(pixels(after), pixels(before))
    numbers = {"pixels": before.width * before.height * 3, "latents": latents.numel()}
    shape = "×".join(map(str, latents.shape[1:]))
    row = [
        Tile(before, f"the picture: {numbers['pixels']:,} numbers"),
        Tile(after, f"after the round trip: {decibels:.1f} dB"),
        Tile(difference, f"the difference, {AMPLIFIED} times amplified"),
        Tile(_together(channels(latents)), f"the latents: {len(latents)} channels of {shape}", hard=True),
    ]
    fewer = numbers["pixels"] / numbers["latents"]
    sentence = (
        f"{numbers['latents']:,} numbers encode {numbers['pixels']:,}, {fewer:.3g} times fewer; "
        f"the decoded picture has a PSNR of {decibels:.1f} dB."
    )
    figures = {**numbers, "psnr": round(decibels, 2) if math.isfinite(decibels) else None}
    return Shown("roundtrip", sheet("The autoencoder's round trip", [row]), sentence, figures)


def blend(
    room: Room, a: Image.Image, b: Image.Image, *, share: float = 0.5, strength: float = 0.4, words: str = ""
) -> Shown:
    """Show averaged pixels, and latents interpolated on a line and on an arc; then each of them noised and denoised.

    `strength` is the share of the plan's steps that are repeated, rounded: 0 changes nothing.
    """
    family = room.family
    first, second = (square(picture, family.size) for picture in (a, b))
    average = picture_of(lerp(pixels(first), pixels(second), share))
    one, other = (family.encode_image(picture) for picture in (first, second))
    starts = [family.encode_image(average), lerp(one, other, share), turned(one, other, share)]
    plain = [average, *(family.finish(latents) for latents in starts[1:])]
    steps = round(strength * room.steps)
    through = _through(room, starts, steps, words) if steps else [family.finish(latents) for latents in starts]
    names = ("pixels averaged", "latents on a line", "latents on an arc")
    said = f"then the last {steps} of {room.steps} steps" if steps else "without noise"
    rows = [
        [Tile(first, "the first"), *(Tile(each, name) for each, name in zip(plain, names, strict=True))],
        [
            Tile(second, "the second"),
            *(Tile(each, f"{name}, {said}") for each, name in zip(through, names, strict=True)),
        ],
    ]
    sentence = (
        f"Above, {share:.0%} of the second picture in three ways, each of which shows two pictures at once; below, the "
        "network makes one picture of each."
    )
    figures = {"share": share, "strength": strength, "steps": steps, "words": words, "seed": room.seed}
    return Shown("blend", sheet("Two pictures mixed", rows), sentence, figures)


def _through(room: Room, starts: list[torch.Tensor], steps: int, words: str) -> list[Image.Image]:
    """Add the noise of the step that is `steps` before the plan's end, and run the plan from there."""
    plan = room.plan
    first = plan.steps - steps
    noise, text = room.noise().to(room.family.device), room.family.encode(words)
    noisy = [noised(start, noise, *level(plan, first)) for start in starts]
    guided = room if words else room.unguided()
    return guided.develop([guided.told(text, start) for start in noisy], first)


def _together(tiles: list[Image.Image]) -> Image.Image:
    """Put small pictures of one size together as one, a pixel apart."""
    across = math.ceil(math.sqrt(len(tiles)))
    width, height = tiles[0].width + 1, tiles[0].height + 1
    page = Image.new("RGB", (across * width - 1, math.ceil(len(tiles) / across) * height - 1), (255, 255, 255))
    for number, each in enumerate(tiles):
        page.paste(each.convert("RGB"), (number % across * width, number // across * height))
    return page
