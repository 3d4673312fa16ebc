"""The reference for parity: runs the unmodified pipeline on one of our recipes, and builds the job for our engine."""

from __future__ import annotations

from typing import Any

import torch

from engine.families.family import Family
from engine.job import Job, Recipe, Share
from engine.plan import build_scheduler

OWNER = Share("standard", "bench", "bench")
DEADLINE = 4e9  # far in the future: no job expires here


def make_job(recipe: Recipe, number: int = 0) -> Job:
    return Job(id=f"{number:026d}", task=recipe, share=OWNER, cost=1.0, deadline=DEADLINE)


def call_pipeline(pipeline: Any, family: Family, recipe: Recipe, output: str = "latent") -> Any:
    """Run the unmodified pipeline on a recipe, with our seeds and our sampler."""
    pipeline.scheduler = build_scheduler(family.scheduler_config, recipe.sampler)  # pyright: ignore[reportAttributeAccessIssue]
    fields: dict[str, Any] = {"guidance_scale": recipe.guidance, "negative_prompt": recipe.negative or None}
    kind = type(pipeline).__name__
    if kind == "ZImagePipeline":
        fields["guidance_scale"] = recipe.guidance - 1
    elif kind == "FluxPipeline" and recipe.guides == "rows":
        fields = {"true_cfg_scale": recipe.guidance, "negative_prompt": recipe.negative}
    elif kind == "SanaPipeline":
        fields |= {"negative_prompt": recipe.negative, "use_resolution_binning": False}
    images = pipeline(
        recipe.concepts[0].text, num_inference_steps=recipe.steps, num_images_per_prompt=recipe.count,
        width=recipe.width, height=recipe.height, output_type=output,
        generator=[torch.Generator().manual_seed(recipe.seed + image) for image in range(recipe.count)], **fields,
    ).images  # fmt: skip
    if kind == "FluxPipeline" and output == "latent":
        return pipeline._unpack_latents(images, recipe.height, recipe.width, pipeline.vae_scale_factor)
    return images
