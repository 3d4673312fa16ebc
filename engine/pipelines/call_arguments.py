"""Turns a recipe into the arguments of a pipeline's call, and refuses what no pipeline supports. Pure."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from engine.contract import FULL_INTERVAL, Recipe, has_skipped_steps, noise_seed
from engine.contract.rejection import JobRejected
from engine.prompt.emphasis import strip_emphasis


def refuse_unsupported_recipe(recipe: Recipe) -> None:
    """Raise `JobRejected` for a recipe that only the batching engine supports."""
    prefix = f"With the sampler {recipe.sampler}, this model's pictures go through its own pipeline as a whole, which"
    if [concept.weight for concept in recipe.concepts] != [1.0]:
        raise JobRejected(f"{prefix} takes one prompt without weights.", "member")
    if recipe.lineage:
        raise JobRejected(f"{prefix} supports no variations.", "member")
    if recipe.guidance_interval != FULL_INTERVAL:
        raise JobRejected(f"{prefix} applies guidance at every step.", "member")
    if has_skipped_steps(recipe):
        raise JobRejected(f"{prefix} evaluates the network at every step.", "member")
    if recipe.controls or recipe.references:
        raise JobRejected(f"{prefix} takes no control or reference pictures: take the sampler ddim.", "member")
    if recipe.start is not None or recipe.stop_at < 1.0 or recipe.tile or recipe.mixed or recipe.interpolation:
        limits = "starts from noise, runs to the end, and supports no tiles, mixed prompts or walks"
        raise JobRejected(
            f"{prefix} {limits}: take the sampler ddim, or another model where this one has none.", "member"
        )


def make_arguments(pipeline: Any, recipe: Recipe, image: int, output_type: str, no_guidance: float) -> dict[str, Any]:
    """Return the arguments of `pipeline(...)` for one image; only those in its signature.

    `no_guidance` is this pipeline's value for our guidance of 1. Sizes are not binned and prompts not cleaned: whether
    a pipeline can clean them depends on other installed packages.
    """
    parameters = inspect.signature(type(pipeline).__call__).parameters
    scale = recipe.guidance - 1.0 + no_guidance
    has_guidance_rows = (
        "true_cfg_scale" in parameters and recipe.guidance_kind == "rows"
    )  # guidance_scale is then an input of the network
    arguments: dict[str, Any] = {
        "prompt": " ".join(strip_emphasis(concept.text) for concept in recipe.concepts),
        "negative_prompt": strip_emphasis(recipe.negative) or _choose_empty_negative(pipeline),
        "width": recipe.width,
        "height": recipe.height,
        "num_inference_steps": recipe.steps,
        "eta": recipe.eta,
        "true_cfg_scale" if has_guidance_rows else "guidance_scale": scale,
        "num_images_per_prompt": 1,
        "generator": torch.Generator().manual_seed(noise_seed(recipe, image)),
        "output_type": output_type,
        "use_resolution_binning": False,
        "clean_caption": False,
    }
    if recipe.steps != 2:
        arguments["intermediate_timesteps"] = None  # Sana Sprint's default only fits two steps
    if not has_guidance_rows and "true_cfg_scale" in parameters:
        del arguments["negative_prompt"]  # no unconditional row runs, so a negative prompt has no effect
    return {name: value for name, value in arguments.items() if name in parameters}


def _choose_empty_negative(pipeline: Any) -> str | None:
    """Return the empty negative prompt. SDXL encodes an empty text but uses zeros for None; others need a text."""
    return None if pipeline.config.get("force_zeros_for_empty_prompt") else ""
