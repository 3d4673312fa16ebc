"""Serializes the services' values to JSON for the page and the API. Pictures count from 1, as on U1 to U4.

Serializes a job's recipe to JSON for the page and the API. Pictures count from 1, as on U1 to U4.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from bot.domain import texts
from bot.domain.dto import AcceptedJob, JobView, Member
from bot.domain.errors import UserError
from bot.domain.events import JobProgress, JobSteered, ModelLoading
from bot.domain.steering import AmendmentView, SteeringOutlook
from bot.jobs.recipe import can_interpolate
from bot.pictures.animation import FilmFormat, available_formats
from bot.pictures.moderation_status import held_images, hold_reason
from bot.prompt.change_texts import final_prompt
from bot.prompt.flags import split_flags
from engine.contract import (
    Branch,
    ImageToImage,
    Interpolation,
    ModelProfile,
    Presence,
    Recipe,
    count_requested_evaluations,
    is_draft,
    list_final_images,
    recipe_at_end,
    settle_fades,
)

LOADING_SENTENCE = "The engine is loading. Prompts wait here until it is ready."


def job_url(job: str) -> str:
    """Return a job's address in the API."""
    return f"/api/jobs/{job}"


def serialize_accepted(accepted_job: AcceptedJob) -> dict[str, Any]:
    """Return an accepted job, as the answer to its request."""
    return {
        "id": accepted_job.job,
        "prompt": accepted_job.prompt,
        "jobs_ahead": accepted_job.jobs_ahead,
        "eta": accepted_job.eta,
        "has_worker": accepted_job.has_worker,
        "startup_notice": accepted_job.startup_notice,
        "notes": list(accepted_job.notes),
        "steps": accepted_job.steps,
        "evaluations": accepted_job.evaluations,
        "sampler": accepted_job.sampler,
        "seed": accepted_job.seed,
        "count": accepted_job.count,
        "cost": accepted_job.cost,
        "url": job_url(accepted_job.job),
    }


def serialize_all_accepted(accepted_jobs: Iterable[AcceptedJob]) -> dict[str, Any]:
    """Return the first accepted job with the ids of all (permutations make several) and every note once."""
    items = [serialize_accepted(item) for item in accepted_jobs]
    notes = list(dict.fromkeys(note for item in items for note in item["notes"]))
    return {**items[0], "ids": [item["id"] for item in items], "jobs": items, "notes": notes}


def serialize_job(view: JobView, reader: Member) -> dict[str, Any]:
    """Return a job as `reader` sees it."""
    is_own = view.member_id == reader.id
    return {
        "id": view.id,
        "state": view.state,
        "action": view.action,
        "prompt": view.prompt,
        "prompt_text": _prompt_without_flags(final_prompt(view.prompt, view.task)),
        "author": {"name": view.member_name, "you": is_own},
        "can_cancel": is_own or reader.is_moderator,
        "can_review": reader.is_moderator,
        "created": view.created,
        "started": view.started,
        "finished": view.finished,
        "seconds": view.seconds,
        "ms_per_step": view.ms_per_step,
        "jobs_ahead": view.jobs_ahead,
        "eta": view.eta,
        "step": view.step,
        "total_steps": view.total_steps,
        "percent": 100 if view.state == "finished" else texts.percent_done(view.step, view.total_steps),
        "cost": view.cost,
        "has_worker": view.has_worker,
        "startup_notice": view.startup_notice,
        "cancelling": view.is_cancelling,
        "reason": _reason_text(view),
        "wait_reason": view.wait_reason,
        "notes": list(view.notes),
        "parent": None
        if view.parent_image is None
        else {"id": view.parent_image[0], "picture": view.parent_image[1] + 1},
        **_serialize_task(view),
        **_serialize_results(view),
    }


def _prompt_without_flags(prompt: str) -> str:
    """Return the prompt without its flags, as the start of another prompt, which must not inherit an old seed."""
    try:
        return split_flags(prompt)[0]
    except UserError:  # a negative prompt of its own field may look like an unknown flag
        return prompt


def _reason_text(view: JobView) -> str:
    if view.state == "cancelled" and not view.reason:
        return texts.format_cancellation(view.step, view.total_steps)
    return view.reason


def _serialize_task(view: JobView) -> dict[str, Any]:
    task = view.task
    if isinstance(task, Recipe):
        footer = texts.format_footer(task, view.seconds, view.ms_per_step, view.enlargement)
        return {"kind": "generate", **serialize_recipe(task), "footer": footer}
    picture = view.pictures[0] if view.pictures else None
    footer = "" if picture is None else texts.format_upscale(task.factor, picture.width, picture.height, task.method)
    return {
        "kind": "upscale",
        "count": 1,
        "images": [1],
        "chosen": None,
        "factor": task.factor,
        "method": task.method,
        "footer": footer,
    }


@cache
def _film_kinds() -> tuple[FilmFormat, ...]:
    """Return the kinds of films that can be made here; installed packages do not change at run time."""
    return available_formats()


def _serialize_results(view: JobView) -> dict[str, Any]:
    base = job_url(view.id)
    held_indices = held_images(view)
    pictures = [
        {
            "n": picture.index + 1,
            "url": f"{base}/pictures/{picture.index + 1}.png",
            "sha256": picture.sha256,
            "width": picture.width,
            "height": picture.height,
            "held": hold_reason(picture.index, picture) if picture.index in held_indices else "",
            **_picture_urls(
                base,
                picture.index + 1,
                is_shown=picture.index not in held_indices,
                has_ladder=picture.index in view.ladder_images,
            ),
        }
        for picture in view.pictures
    ]
    is_finished = view.state == "finished"
    has_film = is_finished and any(image not in held_indices for image in view.ladder_images)
    return {
        "pictures": pictures,
        "grid": f"{base}/grid.png" if is_finished and pictures else None,
        "film": f"{base}/film.webp" if has_film else None,
        "films": {kind: f"{base}/film.{kind}" for kind in _film_kinds()} if has_film else {},
        "keyframes": f"{base}/keyframes" if has_film else None,
        "walk_films": {kind: f"{base}/walk.{kind}" for kind in _film_kinds()} if view.ends_interpolation else {},
    }


def _picture_urls(base: str, number: int, *, is_shown: bool, has_ladder: bool) -> dict[str, str | None]:
    """Return the addresses that a picture has only while it may be shown."""
    return {
        "dissolve": f"{base}/dissolve/{number}.webp" if is_shown else None,
        "round_trip": f"{base}/round-trip/{number}.webp" if is_shown and has_ladder else None,
        "branch": f"{base}/branch/{number}" if is_shown and has_ladder else None,
    }


def serialize_frame(job_event: JobProgress) -> dict[str, Any]:
    """Return live previews: image number → JPEG in base64, only the images that changed.

    The event holds the frames themselves. A frame is a few kilobytes; an address would cost another request on a
    browser's six connections, and the response could arrive after the picture is finished.
    """
    return {
        "id": job_event.job,
        "step": job_event.step,
        "total_steps": job_event.total_steps,
        "percent": texts.percent_done(job_event.step, job_event.total_steps),
        "seconds_left": job_event.seconds_left,
        "frames": {str(index + 1): base64.b64encode(jpeg).decode() for index, jpeg in sorted(job_event.frames.items())},
    }


def serialize_loading(job_event: ModelLoading) -> dict[str, Any]:
    """Return how far a model is loaded: percent, and the sentence for those who wait."""
    percent = texts.percent_done(round(job_event.loaded_share * 1000), 1000)
    sentence = texts.format_loading(job_event.model, job_event.loaded_share, job_event.model_bytes)
    return {"id": job_event.job, "model": job_event.model, "percent": percent, "sentence": sentence}


def _serialize_model(model: ModelProfile) -> dict[str, Any]:
    return {
        "name": model.name,
        "size": model.size,
        "upscale_factor": model.upscale_factor,
        "steps": model.steps,
        "loaded": model.loaded,
        "samplers": list(model.samplers),
        "loras": [lora.name for lora in model.loras],
        "controls": [control.name for control in model.controls],
        "references": [reference.name for reference in model.references],
        "embeddings": [part.name for part in model.embeddings],
        "vaes": [part.name for part in model.autoencoders],
        "quantization": model.quantization,
    }


def serialize_workers(
    workers: Mapping[str, Presence], *, engine_loading: bool = False, starting: str = ""
) -> dict[str, Any]:
    """Return every live worker with its device and its models.

    `engine_loading`: one is sure to come soon. `starting`: the sentence on one that is starting.
    """
    items = [
        {
            "name": worker.worker,
            "device": worker.device,
            "rows": worker.rows,
            "free": worker.free,
            "models": [_serialize_model(model) for model in worker.models],
        }
        for worker in sorted(workers.values(), key=lambda one: one.worker)
    ]
    models = [model for worker in workers.values() for model in worker.models]
    sentence = starting or (LOADING_SENTENCE if engine_loading else texts.NO_WORKER)
    return {
        "online": bool(items),
        "engine_loading": (engine_loading or bool(starting)) and not items,
        "workers": items,
        "models": sorted({model.name for model in models}),
        "loaded": sorted({model.name for model in models if model.loaded}),
        "sentence": "" if items else sentence,
    }


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
