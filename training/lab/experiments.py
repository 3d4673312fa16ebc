"""The experiments: sums of words, interpolation, the autoencoder, the forward process; each draws one contact sheet.

Sums of words are drawn mixed in embedding space, and as separate rows whose outputs are summed. The interpolation goes
from one prompt to another, and with two seeds from one noise to another. The user's pictures are opened safely.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from engine.batching.model_inputs import slerp
from engine.contract import JobRejected
from training.diffusion.latent_sampling import SamplingInput, initial_noise, noise_level, predict_x0, timestep
from training.lab.context import ExperimentResult, LabContext, make_ddim_plan
from training.lab.tensor_math import (
    add_noise,
    balance_weights,
    interpolate_on_arc,
    interpolate_states,
    lerp,
    mix_states,
    positive_sum,
    psnr,
)
from training.lab.word_sums import Term, format_sum
from training.pictures.picture_file import UnusablePicture, decode_picture

METHODS = ("mixed in embedding space", "composable rows")
WEIGHT_STEPS = 5
MIX_SUMMARY = (
    "Each row starts from the same noise: first each term alone, then one conditioning, the sum of token states, "
    "then a network row for each term, their outputs summed with weights whose positive part is scaled to 1."
)


def draw_mix(context: LabContext, terms: Sequence[Term], count: int = 3) -> ExperimentResult:
    """Draw each term alone, the embedding mix and the composable rows, from `count` seeds. Raises `JobRejected`."""
    if not any(term.weight > 0 for term in terms):
        raise JobRejected("At least one term must have a plus sign.", "member")
    noises = [context.initial_noise(number) for number in range(count)]
    drawings = [drawing for noise in noises for drawing in _row_drawings(context, terms, noise)]
    pictures = context.render_pictures(drawings)
    captions = [*(term.text for term in terms), *METHODS]
    columns = len(captions)
    rows = [
        [Tile(picture, caption) for picture, caption in zip(pictures[offset : offset + columns], captions, strict=True)]
        for offset in range(0, len(pictures), columns)
    ]
    figures = {"terms": {term.text: term.weight for term in terms}, "seeds": [context.seed + n for n in range(count)]}
    return ExperimentResult("mix", draw_sheet(format_sum(terms), rows), MIX_SUMMARY, figures)


def draw_weight_steps(context: LabContext, terms: Sequence[Term]) -> ExperimentResult:
    """Draw the sum while the last term's weight grows from 0 to its value in equal steps, from one seed."""
    *other_terms, last_term = terms
    weights = [last_term.weight * number / (WEIGHT_STEPS - 1) for number in range(WEIGHT_STEPS)]
    sums = [[*other_terms, Term(last_term.text, weight)] for weight in weights]
    if not all(any(term.weight > 0 for term in sum_terms) for sum_terms in sums):
        raise JobRejected("A term before the last must have a plus sign, since the last one begins at 0.", "member")
    total_weight = positive_sum(
        term.weight for term in other_terms
    )  # for all steps, so that the others keep their guidance
    pairs = [_row_drawings(context, sum_terms, context.initial_noise(), total_weight)[-2:] for sum_terms in sums]
    pictures = context.render_pictures([drawing for method in zip(*pairs, strict=True) for drawing in method])
    captions = [f"{weight:+.3g} {last_term.text}, {method}" for method in METHODS for weight in weights]
    tiles = [Tile(picture, caption) for picture, caption in zip(pictures, captions, strict=True)]
    figures = {"terms": {term.text: term.weight for term in terms}, "weights": weights, "seeds": [context.seed]}
    summary = (
        f"The weight of “{last_term.text}” grows from 0 to {last_term.weight:g} and the other terms stay, in both "
        "ways of mixing."
    )
    return ExperimentResult(
        "stairs", draw_sheet(format_sum(terms), [tiles[:WEIGHT_STEPS], tiles[WEIGHT_STEPS:]]), summary, figures
    )


def _row_drawings(
    context: LabContext, terms: Sequence[Term], noise: torch.Tensor, total_weight: float | None = None
) -> list[SamplingInput]:
    states = [context.family.encode_text(term.text) for term in terms]
    empty = context.family.encode_text("")
    weights = [term.weight for term in terms]
    single_drawings = [context.make_drawing(state, noise) for state in states]
    mix_drawing = context.make_drawing(mix_states(empty, states, weights), noise)
    return [*single_drawings, mix_drawing, compose_drawing(context, states, weights, noise, total_weight)]


def compose_drawing(
    context: LabContext,
    states: Sequence[torch.Tensor],
    weights: Sequence[float],
    noise: torch.Tensor,
    total_weight: float | None = None,
) -> SamplingInput:
    """Return the drawing u + guidance·Σ wᵢ(cᵢ - u) (Liu et al. 2022), with balanced weights, as the bot's `::` does.

    `total_weight` is the sum of weights that counts as 1; by default the sum of the positive weights.
    """
    coefficients = tuple(context.guidance * weight for weight in balance_weights(weights, total_weight))
    return SamplingInput(noise, torch.stack([context.family.encode_text(""), *states]), coefficients)


COLUMNS = 6
SEED_COUNT = 2**32  # the bot's range of seeds


def interpolate_prompts(
    context: LabContext, start_prompt: str, end_prompt: str, frames: int = 12, seeds: tuple[int, int] | None = None
) -> ExperimentResult:
    """Draw `frames` pictures in equal steps between the prompts. Raises `JobRejected` for seeds out of range."""
    if any(not 0 <= seed < SEED_COUNT for seed in seeds or ()):
        raise JobRejected(f"A seed is a number from 0 to {SEED_COUNT - 1}.", "member")
    shares = [number / (frames - 1) for number in range(frames)]
    pictures = context.render_pictures(
        [_make_frame(context, start_prompt, end_prompt, share, seeds) for share in shares]
    )
    tiles = [Tile(picture, f"{share:.0%}") for picture, share in zip(pictures, shares, strict=True)]
    rows = [tiles[offset : offset + COLUMNS] for offset in range(0, frames, COLUMNS)]
    summary = (
        f"The conditioning moves from “{start_prompt}” to “{end_prompt}” while "
        + ("the noise moves on an arc from one seed to the other" if seeds else "the noise stays the same")
        + "; the frames in between belong to no prompt that can be typed."
    )
    figures = {
        "from": start_prompt,
        "to": end_prompt,
        "shares": [round(share, 4) for share in shares],
        "seeds": list(seeds or [context.seed]),
    }
    return ExperimentResult(
        "walk",
        draw_sheet(f"{start_prompt} → {end_prompt}", rows, tile_side=160),
        summary,
        figures,
        [*pictures, *pictures[-2:0:-1]],
    )


def _make_frame(
    context: LabContext, start_prompt: str, end_prompt: str, share: float, seeds: tuple[int, int] | None
) -> SamplingInput:
    noise = context.initial_noise()
    if seeds:
        noise = slerp(initial_noise(context.family, seeds[0]), initial_noise(context.family, seeds[1]), share)
    return context.make_drawing(
        interpolate_states(context.family.encode_text(start_prompt), context.family.encode_text(end_prompt), share),
        noise,
    )


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


LEVEL_COUNT = 8


def show_forward_process(context: LabContext, picture: Image.Image, prompt: str = "") -> ExperimentResult:
    """Show eight noise levels; below each the estimate of x0, without a prompt and with it."""
    family = context.family
    clean = family.encode_image(crop_square(picture, family.size))
    noise = context.initial_noise().to(context.family.device)
    plan = make_ddim_plan(family, LEVEL_COUNT)
    noisy_row = list[Tile]()
    rows = {text: list[Tile]() for text in dict.fromkeys(("", prompt))}
    for k in reversed(range(LEVEL_COUNT)):
        alpha, sigma = noise_level(plan, k)
        noisy = add_noise(clean, noise, alpha, sigma)
        noisy_row.append(Tile(family.decode(noisy), f"t = {timestep(plan, k)}: {alpha:.2f} x0 + {sigma:.2f} noise"))
        for text, row in rows.items():
            prompt_context = context if text else context.without_guidance()
            latents = predict_x0(family, plan, k, prompt_context.make_drawing(family.encode_text(text), noisy))
            row.append(Tile(family.decode(latents), f"told: {text}" if text else "told nothing"))
    summary = (
        f"Above, the picture with more noise at each of {LEVEL_COUNT} levels; below, the network's estimate of it at "
        "each: "
        "the general shape survives longest, and at the end the network has only the prompt."
    )
    levels = [
        {"t": timestep(plan, k), "alpha": noise_level(plan, k)[0], "sigma": noise_level(plan, k)[1]}
        for k in range(LEVEL_COUNT)
    ]
    figures = {"levels": levels[::-1], "words": prompt, "seed": context.seed}
    return ExperimentResult(
        "forward", draw_sheet("The forward process", [noisy_row, *rows.values()], tile_side=128), summary, figures
    )


def open_picture(path: Path) -> Image.Image:
    """Open a picture as training does, upright and on white; the first frame of an animation. Raises `JobRejected`."""
    try:
        return decode_picture(path, first_frame=True).pixels
    except UnusablePicture as error:
        raise JobRejected(f"{path.name[:100]} {error}.", "member") from error


def crop_square(picture: Image.Image, side: int) -> Image.Image:
    """Crop the largest square around the middle and resize it to `side` pixels."""
    return ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """Return float32 `[height, width, 3]`, 0 to 255."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32).copy())


def to_picture(values: torch.Tensor) -> Image.Image:
    """Return the picture of `[height, width, 3]`, 0 to 255; other values are clamped."""
    return Image.fromarray(values.round().clamp(0, 255).to(torch.uint8).numpy())


def channel_pictures(latents: torch.Tensor) -> list[Image.Image]:
    """Return each channel as a grey picture, black at -3 and white at 3: latents have about unit variance."""
    grey = ((latents.float().cpu() + 3) / 6 * 255).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(channel.numpy()) for channel in grey]


TILE_SIDE = 192
GAP = 12
TEXT_SIZE = 13
TITLE_SIZE = 17
MAX_LINES = 2
TEXT_COLOUR = (34, 34, 38)
PAGE_COLOUR = (255, 255, 255)
FRAME_COLOUR = (226, 226, 230)
# Replacements for characters that Pillow's built-in font lacks. That font makes sheets equal on every machine.
_REPLACEMENTS = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "×": "x", "“": '"', "”": '"', "’": "'", "…": "...", "→": "to"}
)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """One picture and its caption. `is_pixelated`: enlarge it without smoothing, to show its pixels."""

    picture: Image.Image
    caption: str = ""
    is_pixelated: bool = False


def draw_sheet(title: str, rows: Sequence[Sequence[Tile | None]], tile_side: int = TILE_SIDE) -> Image.Image:
    """Draw the rows under a title; None leaves a cell empty."""
    font = ImageFont.load_default(TEXT_SIZE)
    large = ImageFont.load_default(TITLE_SIZE)
    columns = max(len(row) for row in rows)
    line_counts = [max(len(_wrap(cell.caption, tile_side, font)) for cell in row if cell) for row in rows]
    heights = [tile_side + 6 + count * (TEXT_SIZE + 4) + GAP for count in line_counts]
    width = GAP + columns * (tile_side + GAP)
    title_lines = _wrap(title, width - 2 * GAP, large)
    top = GAP + len(title_lines) * (TITLE_SIZE + 5) + 4
    page = Image.new("RGB", (width, top + sum(heights)), PAGE_COLOUR)
    draw = ImageDraw.Draw(page)
    _draw_text(draw, (GAP, GAP), title_lines, large, TITLE_SIZE + 5)
    for number, row in enumerate(rows):
        y = top + sum(heights[:number])
        for column, cell in enumerate(row):
            if cell:
                _draw_tile(page, draw, (GAP + column * (tile_side + GAP), y), cell, tile_side, font)
    return page


def to_ascii(text: str) -> str:
    """Rewrite the text with characters that the font has."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_REPLACEMENTS))
    letters = (letter for letter in decomposed if not unicodedata.combining(letter))
    return "".join(letter if " " <= letter <= "~" else "?" for letter in letters)


def _draw_tile(
    page: Image.Image, draw: ImageDraw.ImageDraw, position: tuple[int, int], cell: Tile, tile_side: int, font: Font
) -> None:
    scale = tile_side / max(cell.picture.size)
    size = (max(1, round(cell.picture.width * scale)), max(1, round(cell.picture.height * scale)))
    resampling = Image.Resampling.NEAREST if cell.is_pixelated else Image.Resampling.LANCZOS
    thumbnail = cell.picture.convert("RGB").resize(size, resampling)
    left = position[0] + (tile_side - size[0]) // 2
    top = position[1] + (tile_side - size[1]) // 2
    page.paste(thumbnail, (left, top))
    draw.rectangle((left - 1, top - 1, left + size[0], top + size[1]), outline=FRAME_COLOUR)
    _draw_text(
        draw, (position[0], position[1] + tile_side + 5), _wrap(cell.caption, tile_side, font), font, TEXT_SIZE + 4
    )


def _draw_text(
    draw: ImageDraw.ImageDraw, position: tuple[int, int], lines: Sequence[str], font: Font, height: int
) -> None:
    for number, line in enumerate(lines):
        draw.text((position[0], position[1] + number * height), line, fill=TEXT_COLOUR, font=font)


def _wrap(text: str, width: int, font: Font) -> list[str]:
    """Wrap to at most `MAX_LINES` lines of `width` pixels; a longer text ends in dots."""
    words = to_ascii(text).split()
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    is_cut = len(lines) > MAX_LINES
    visible_lines = lines[:MAX_LINES]
    return [
        _truncate(line, width, font, add_dots=is_cut and number == MAX_LINES - 1)
        for number, line in enumerate(visible_lines)
    ]


def _truncate(line: str, width: int, font: Font, *, add_dots: bool) -> str:
    ending = "..." if add_dots or font.getlength(line) > width else ""
    while line and font.getlength(line + ending) > width:
        line = line[:-1]
    return line + ending
