"""Turns a recipe into the arguments of a pipeline's call, and refuses what no pipeline supports. Pure."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from engine.emphasis import plain
from engine.job import ALL_ALONG, Recipe
from engine.unfit import Unfit


def refuse_what_no_pipeline_does(recipe: Recipe) -> None:
    """Raise `Unfit` for a recipe that only the batching engine supports."""
    whole = f"With the sampler {recipe.sampler}, this model's pictures go through its own pipeline as a whole, which"
    if [concept.weight for concept in recipe.concepts] != [1.0]:
        raise Unfit(f"{whole} takes one prompt without weights.", "member")
    if recipe.lineage:
        raise Unfit(f"{whole} supports no variations.", "member")
    if recipe.interval != ALL_ALONG:
        raise Unfit(f"{whole} applies guidance at every step.", "member")
    if recipe.start is not None or recipe.until < 1.0 or recipe.tile or recipe.mixed or recipe.walk:
        what = "starts from noise, runs to the end, and supports no tiles, mixed prompts or walks"
        raise Unfit(f"{whole} {what}: take the sampler ddim, or another model where this one has none.", "member")


def arguments(pipeline: Any, recipe: Recipe, image: int, output_type: str, no_guidance: float) -> dict[str, Any]:
    """Return the arguments of `pipeline(...)` for one image; only those in its signature.

    `no_guidance` is this pipeline's value for our guidance of 1. Sizes are not binned and prompts not cleaned: whether
    a pipeline can clean them depends on other installed packages.
    """
    known = inspect.signature(type(pipeline).__call__).parameters
    scale = recipe.guidance - 1.0 + no_guidance
    by_rows = "true_cfg_scale" in known and recipe.guides == "rows"  # guidance_scale is then an input of the network
    wanted: dict[str, Any] = {
        "prompt": " ".join(plain(concept.text) for concept in recipe.concepts),
        "negative_prompt": plain(recipe.negative) or _nothing(pipeline),
        "width": recipe.width, "height": recipe.height, "num_inference_steps": recipe.steps, "eta": recipe.eta,
        "true_cfg_scale" if by_rows else "guidance_scale": scale, "num_images_per_prompt": 1,
        "generator": torch.Generator().manual_seed(recipe.seed + image), "output_type": output_type,
        "use_resolution_binning": False, "clean_caption": False,
    }  # fmt: skip
    if recipe.steps != 2:
        wanted["intermediate_timesteps"] = None  # Sana Sprint's default only fits two steps
    if not by_rows and "true_cfg_scale" in known:
        del wanted["negative_prompt"]  # no unconditional row runs, so a negative prompt has no effect
    return {name: value for name, value in wanted.items() if name in known}


def _nothing(pipeline: Any) -> str | None:
    """Return the empty negative prompt. SDXL encodes an empty text but uses zeros for None; others need a text."""
    return None if pipeline.config.get("force_zeros_for_empty_prompt") else ""
