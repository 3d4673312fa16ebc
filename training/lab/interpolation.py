"""Interpolation from one prompt to another, and with two seeds from one noise to another."""

from __future__ import annotations

from engine.batching.noise import slerp
from engine.contract.rejection import JobRejected
from training.diffusion.latent_sampling import SamplingInput, initial_noise
from training.lab.contact_sheet import Tile, draw_sheet
from training.lab.context import ExperimentResult, LabContext
from training.lab.tensor_math import interpolate_states

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
