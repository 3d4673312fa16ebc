"""Serializes a job's recipe to JSON for the page and the API. Pictures count from 1, as on U1 to U4."""

from __future__ import annotations

from typing import Any

from bot.domain.dto import Member
from bot.domain.events import JobSteered
from bot.domain.steering import AmendmentView, SteeringOutlook
from bot.jobs.recipe import can_interpolate
from engine.contract import (
    Branch,
    ImageToImage,
    Interpolation,
    Recipe,
    count_requested_evaluations,
    is_draft,
    list_final_images,
    recipe_at_end,
    settle_fades,
)


def serialize_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's settings and its pictures; of a steered job, the settings that it has come to."""
    return {**_serialize_settings(recipe_at_end(recipe)), **_serialize_images(recipe)}


def _serialize_images(recipe: Recipe) -> dict[str, Any]:
    """Return the numbers of its pictures, of which steering may drop some and add others, and whether they can walk."""
    numbers = [image + 1 for image in list_final_images(recipe)]
    return {
        "count": len(numbers),
        "images": numbers,
        "steering": serialize_steering(recipe),
        "steered": len(recipe.amendments),  # how often
        "can_interpolate": can_interpolate(recipe),
        "is_draft": is_draft(recipe),
    }


def _serialize_settings(recipe: Recipe) -> dict[str, Any]:
    return {
        "model": recipe.model,
        "sampler": recipe.sampler,
        "steps": recipe.steps,
        "evaluations": count_requested_evaluations(recipe),
        "seed": recipe.seed,
        "guidance": recipe.guidance,
        "interval": [recipe.guidance_start, recipe.guidance_stop],
        "loras": [{"name": lora.name, "weight": lora.weight} for lora in recipe.loras],
        "controls": [
            {"name": control.name, "scale": control.scale, "start": control.start, "stop": control.stop}
            for control in recipe.controls
        ],
        "references": [{"name": reference.name, "scale": reference.scale} for reference in recipe.references],
        "embeddings": [part.name for part in recipe.embeddings],
        "vae": recipe.autoencoder.name if recipe.autoencoder else None,
        "clip_skip": recipe.clip_skip + 1 if recipe.clip_skip else None,
        "quantization": recipe.quantization,
        "styles": list(recipe.styles),
        "negative": recipe.negative,
        "width": recipe.width,
        "height": recipe.height,
        "candidates": recipe.candidate_count or None,
        "chosen": list(recipe.chosen_candidates) or None,
        "exact": recipe.bucket is not None,
        "start": _serialize_start(recipe.start),
        "walk": _serialize_interpolation(recipe.interpolation),
        "stopped_at": recipe.end_step if recipe.end_step < recipe.steps else None,
    }


def _serialize_start(start: ImageToImage | Branch | None) -> dict[str, Any] | None:
    """Return how it begins: the number of init images, or a step of its parent; None for noise."""
    if isinstance(start, Branch):
        return {"step": start.keyframe_step, "new_noise": start.has_new_noise}
    if isinstance(start, ImageToImage):
        return {"pictures": len(start.pictures), "strength": start.strength, "mask": start.mask is not None}
    return None


def _serialize_interpolation(walk: Interpolation | None) -> dict[str, Any] | None:
    """Return which frames of an interpolation a job makes; None for a job that is no part of one."""
    if walk is None:
        return None
    seeds = list(walk.noises)
    return {
        "to_prompt": walk.end_prompt,
        "first_frame": walk.first,
        "total_frames": walk.total_frames,
        "noise_seeds": seeds,
    }


def serialize_steering(recipe: Recipe) -> dict[str, Any]:
    """Return what steering changes, as it is with all changes that are made."""
    words = settle_fades(recipe)
    return {
        "concepts": [{"text": concept.text, "weight": concept.weight} for concept in words.concepts],
        "mixed": words.mixed,
        "negative": words.negative,
        "guidance": words.guidance,
        "interval": [words.guidance_start, words.guidance_stop],
        "images": [image + 1 for image in list_final_images(recipe)],
    }


def serialize_amendment(view: AmendmentView, reader: Member | None = None) -> dict[str, Any]:
    """Return a change as `reader` sees it; None: as everybody does."""
    is_own = reader is not None and view.member_id == reader.id
    return {
        "number": view.number,
        "state": view.state,
        "step": view.step,
        "total_steps": view.total_steps,
        "reason": view.reason,
        "author": {"name": view.member_name, **({} if reader is None else {"you": is_own})},
        "kind": view.kind,
        "text": view.text,
        "at": view.at,
    }


def serialize_outlook(outlook: SteeringOutlook | None) -> dict[str, Any]:
    """Return what can be changed now: `steering` as if all that waits were made, None for an upscale."""
    if outlook is None:
        return {"steering": None, "left": 0, "obstacle": ""}
    steering = serialize_steering(outlook.recipe)
    return {"steering": steering, "left": outlook.changes_left, "obstacle": outlook.obstacle}


def serialize_steered(job_event: JobSteered) -> dict[str, Any]:
    """Return a change that was asked for, made or refused, and what holds now."""
    return {
        "id": job_event.job,
        "amendment": serialize_amendment(job_event.view),
        "steering": serialize_steering(job_event.recipe),
    }
