"""Steering as JSON for the page and the API: what holds now, and each change. Images count from 1."""

from __future__ import annotations

from typing import Any

from bot.domain.dto import Member
from bot.domain.events import JobSteered
from bot.domain.steering import AmendmentView, SteeringOutlook
from engine.contract import Recipe, list_final_images, settle_fades


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
