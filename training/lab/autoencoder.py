"""Experiments with the autoencoder: a picture's round trip, and two pictures mixed as pixels and as latents."""

from __future__ import annotations

import math

import torch
from PIL import Image

from training.diffusion.latent_sampling import noise_level
from training.lab.contact_sheet import Tile, draw_sheet
from training.lab.context import ExperimentResult, LabContext
from training.lab.pictures import channel_pictures, crop_square, to_picture, to_tensor
from training.lab.tensor_math import add_noise, interpolate_on_arc, lerp, psnr

DIFFERENCE_GAIN = 4


def show_round_trip(context: LabContext, picture: Image.Image) -> ExperimentResult:
    """Show the picture, the decoded picture, their difference, and the latents."""
    family = context.family
    original = crop_square(picture, family.size)
    latents = family.encode_image(original)
    decoded_picture = family.decode(latents)
    difference = to_picture(DIFFERENCE_GAIN * (to_tensor(decoded_picture) - to_tensor(original)).abs())
    decibels = psnr(to_tensor(decoded_picture), to_tensor(original))
    numbers = {"pixels": original.width * original.height * 3, "latents": latents.numel()}
    shape = "×".join(map(str, latents.shape[1:]))
    row = [
        Tile(original, f"the picture: {numbers['pixels']:,} numbers"),
        Tile(decoded_picture, f"after the round trip: {decibels:.1f} dB"),
        Tile(difference, f"the difference, {DIFFERENCE_GAIN} times amplified"),
        Tile(
            _tile_pictures(channel_pictures(latents)),
            f"the latents: {len(latents)} channels of {shape}",
            is_pixelated=True,
        ),
    ]
    compression = numbers["pixels"] / numbers["latents"]
    summary = (
        f"{numbers['latents']:,} numbers encode {numbers['pixels']:,}, {compression:.3g} times fewer; "
        f"the decoded picture has a PSNR of {decibels:.1f} dB."
    )
    figures = {**numbers, "psnr": round(decibels, 2) if math.isfinite(decibels) else None}
    return ExperimentResult("roundtrip", draw_sheet("The autoencoder's round trip", [row]), summary, figures)


def blend_pictures(
    context: LabContext, a: Image.Image, b: Image.Image, *, share: float = 0.5, strength: float = 0.4, prompt: str = ""
) -> ExperimentResult:
    """Show averaged pixels, and latents interpolated on a line and on an arc; then each of them noised and denoised.

    `strength` is the share of the plan's steps that are repeated, rounded: 0 changes nothing.
    """
    family = context.family
    first, second = (crop_square(picture, family.size) for picture in (a, b))
    average_picture = to_picture(lerp(to_tensor(first), to_tensor(second), share))
    first_latents, second_latents = (family.encode_image(picture) for picture in (first, second))
    start_latents = [
        family.encode_image(average_picture),
        lerp(first_latents, second_latents, share),
        interpolate_on_arc(first_latents, second_latents, share),
    ]
    plain_pictures = [average_picture, *(family.finish(latents) for latents in start_latents[1:])]
    steps = round(strength * context.steps)
    denoised_pictures = (
        _denoise(context, start_latents, steps, prompt)
        if steps
        else [family.finish(latents) for latents in start_latents]
    )
    names = ("pixels averaged", "latents on a line", "latents on an arc")
    steps_note = f"then the last {steps} of {context.steps} steps" if steps else "without noise"
    rows = [
        [Tile(first, "the first"), *(Tile(picture, name) for picture, name in zip(plain_pictures, names, strict=True))],
        [
            Tile(second, "the second"),
            *(Tile(picture, f"{name}, {steps_note}") for picture, name in zip(denoised_pictures, names, strict=True)),
        ],
    ]
    summary = (
        f"Above, {share:.0%} of the second picture in three ways, each of which shows two pictures at once; below, the "
        "network makes one picture of each."
    )
    figures = {"share": share, "strength": strength, "steps": steps, "words": prompt, "seed": context.seed}
    return ExperimentResult("blend", draw_sheet("Two pictures mixed", rows), summary, figures)


def _denoise(context: LabContext, start_latents: list[torch.Tensor], steps: int, prompt: str) -> list[Image.Image]:
    """Add the noise of the step that is `steps` before the plan's end, and run the plan from there."""
    plan = context.plan
    first_step = plan.steps - steps
    noise = context.initial_noise().to(context.family.device)
    conditioning = context.family.encode_text(prompt)
    noisy_latents = [add_noise(latents, noise, *noise_level(plan, first_step)) for latents in start_latents]
    guided_context = context if prompt else context.without_guidance()
    return guided_context.render_pictures(
        [guided_context.make_drawing(conditioning, latents) for latents in noisy_latents], first_step
    )


def _tile_pictures(tiles: list[Image.Image]) -> Image.Image:
    """Put small pictures of one size together as one, a pixel apart."""
    columns = math.ceil(math.sqrt(len(tiles)))
    width = tiles[0].width + 1
    height = tiles[0].height + 1
    page = Image.new("RGB", (columns * width - 1, math.ceil(len(tiles) / columns) * height - 1), (255, 255, 255))
    for number, picture in enumerate(tiles):
        page.paste(picture.convert("RGB"), (number % columns * width, number // columns * height))
    return page
