"""SDXL's inpainting pipeline, read as its text-to-image pipeline."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline


def as_stable_diffusion_xl(pipeline: Any) -> StableDiffusionXLPipeline:
    """Return the parts as an SDXL pipeline, which has the same ones."""
    parts: dict[str, Any] = pipeline.components
    options: dict[str, Any] = {
        "force_zeros_for_empty_prompt": pipeline.config.force_zeros_for_empty_prompt,
        "add_watermarker": False,
    }
    return StableDiffusionXLPipeline(**parts, **options)
