"""A recipe as text in A1111's format, as a PNG carries it."""

from __future__ import annotations

import json
import re

import msgspec

from engine.contract import (
    FULL_INTERVAL,
    SAMPLER_TITLES,
    Branch,
    ImageToImage,
    Recipe,
    has_skipped_steps,
    make_part_fields,
    noise_seed,
    recipe_for_image,
    settle_amendments,
)


def format_parameters(
    recipe: Recipe, image: int, revision: str, factor: int = 1, upscaler: str = "", *, is_by_backend: bool = False
) -> str:
    """Return the recipe of one image in A1111's format. With that seed diffusers draws the same picture.

    `Size` is the size for diffusers. A later upscale is in A1111's own fields for it. The words and settings of a
    steered picture are those of its last step, which draw another one: its whole recipe is in a field of its own.
    """
    steered = recipe
    recipe = recipe_for_image(settle_amendments(recipe, image), image)
    loras = (f"<lora:{each.name}:{each.weight:g}>" for each in recipe.loras)
    lines = [_escape_marker(" ".join((*(_format_concept(each.text, each.weight) for each in recipe.concepts), *loras)))]
    if recipe.negative:
        lines.append(f"Negative prompt: {_escape_marker(recipe.negative)}")
    fields = {
        "Steps": recipe.steps,
        "Sampler": SAMPLER_TITLES[recipe.sampler],
        "CFG scale": f"{recipe.guidance:g}",
        "Seed": noise_seed(recipe, image),
        "Size": f"{recipe.width}x{recipe.height}",
        "Model hash": revision,
        "Model": recipe.model,
    }
    if not is_by_backend:  # which nobody knows of another server
        fields["Precision"] = recipe.dtype
    if recipe.sampler == "ddim":
        fields["Eta"] = f"{recipe.eta:g}"
    if recipe.guidance_interval != FULL_INTERVAL:
        fields["Guidance interval"] = f"{recipe.guidance_start:g}-{recipe.guidance_stop:g}"
    fields |= {"Evaluations": recipe.evaluations} if has_skipped_steps(recipe) else {}
    if factor > 1:
        fields |= {"Hires upscale": factor, "Hires upscaler": upscaler}
    if recipe.lineage:
        fields["Variation of"] = " ".join(f"{each.seed + each.index}@{each.strength:g}" for each in recipe.lineage)
    fields |= make_part_fields(recipe) | _start_fields(recipe) | _steering_fields(steered)
    if recipe.candidate_count:
        fields["Best of"] = recipe.candidate_count
    if recipe.bucket is not None:
        fields["Batch shape"] = recipe.bucket
    lines.append(", ".join(f"{name}: {value}" for name, value in (fields | {"Version": "Darkroom"}).items()))
    return "\n".join(lines)


def _start_fields(recipe: Recipe) -> dict[str, str]:
    """Return the fields for the start and the end, A1111's if it has them. Images are named by their SHA-256."""
    fields: dict[str, str] = {}
    if isinstance(recipe.start, ImageToImage):
        fields["Denoising strength"] = f"{recipe.start.strength:g}"
        fields["Begun with"] = " ".join(
            f"{init_image.sha256[:10]}@{init_image.weight:g}" for init_image in recipe.start.pictures
        )
        fields |= {"Mask": recipe.start.mask[:10]} if recipe.start.mask else {}
    if isinstance(recipe.start, Branch):
        fields["Branched from"] = f"{recipe.start.ladder[:10]} at {recipe.start.keyframe_step}"
    if recipe.stop_at < 1:
        fields["Stopped after"] = f"{recipe.end_step}"
    fields |= {"Tiling": "True"} if recipe.tile else {}
    return fields | ({"Mixed": "True"} if recipe.mixed else {})


def _steering_fields(recipe: Recipe) -> dict[str, str]:
    """Return how often a picture was steered, and its whole recipe: JSON, quoted as A1111 quotes values with commas."""
    if not recipe.amendments:
        return {}
    count = len(recipe.amendments)
    text = re.sub(r"(negative prompt):", r"\1\\u003a", msgspec.json.encode(recipe).decode(), flags=re.IGNORECASE)
    return {"Steered": f"{count} change" if count == 1 else f"{count} changes", "Darkroom recipe": json.dumps(text)}


def _escape_marker(text: str) -> str:
    """Break this marker inside the text: readers split at it anywhere."""
    return re.sub(r"(negative prompt):", r"\1 :", text, flags=re.IGNORECASE)


def _format_concept(text: str, weight: float) -> str:
    return text if weight == 1.0 else f"{text}::{weight:g}"
