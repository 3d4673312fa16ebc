"""The reference for parity: runs the unmodified pipeline on one of our recipes, and builds the job for our engine."""

from __future__ import annotations

from typing import Any

import torch

from engine.families.family import Family
from engine.job import BillingKey, Job, Recipe
from engine.plan import build_scheduler

BILLING_KEY = BillingKey("standard", "bench", "bench")
DEADLINE = 4e9  # far in the future: no job expires here


def make_job(recipe: Recipe, job_number: int = 0) -> Job:
    return Job(id=f"{job_number:026d}", task=recipe, share=BILLING_KEY, cost=1.0, deadline=DEADLINE)


def call_pipeline(pipeline: Any, family: Family, recipe: Recipe, output_type: str = "latent") -> Any:
    """Run the unmodified pipeline on a recipe, with our seeds and our sampler."""
    pipeline.scheduler = build_scheduler(family.scheduler_config, recipe.sampler)  # pyright: ignore[reportAttributeAccessIssue]
    arguments: dict[str, Any] = {"guidance_scale": recipe.guidance, "negative_prompt": recipe.negative or None}
    pipeline_class = type(pipeline).__name__
    if pipeline_class == "ZImagePipeline":
        arguments["guidance_scale"] = recipe.guidance - 1
    elif pipeline_class == "FluxPipeline" and recipe.guides == "rows":
        arguments = {"true_cfg_scale": recipe.guidance, "negative_prompt": recipe.negative}
    elif pipeline_class == "SanaPipeline":
        arguments |= {"negative_prompt": recipe.negative, "use_resolution_binning": False}
    images = pipeline(
        recipe.concepts[0].text, num_inference_steps=recipe.steps, num_images_per_prompt=recipe.count,
        width=recipe.width, height=recipe.height, output_type=output_type,
        generator=[torch.Generator().manual_seed(recipe.seed + image) for image in range(recipe.count)], **arguments,
    ).images  # fmt: skip
    if pipeline_class == "FluxPipeline" and output_type == "latent":
        return pipeline._unpack_latents(images, recipe.height, recipe.width, pipeline.vae_scale_factor)
    return images
