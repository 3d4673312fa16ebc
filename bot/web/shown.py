"""Serializes the studio's values to JSON for the page and the API. Pictures count from 1, as on U1 to U4."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import msgspec

from bot import sentences
from bot.desk.recipes import walkable
from bot.feed import Developing, Readying
from bot.images.film_formats import Kind, available
from bot.images.held import held, why
from bot.prompt.flags import split
from bot.refused import Refused
from bot.views import Member, Ticket, View
from engine.job import Branch, Forward, Presence, Recipe, Warm

WARMING = "The engine is warming up. Prompts wait here until it is ready."


def address(job: str) -> str:
    """Return a job's address in the API."""
    return f"/api/jobs/{job}"


def ticket(one: Ticket) -> dict[str, Any]:
    """Return an accepted job, as the answer to its request."""
    return {
        "id": one.job,
        "prompt": one.prompt,
        "place": one.ahead,
        "eta": one.eta,
        "worker": one.worker,
        "starting": one.starting,
        "notes": list(one.notes),
        "steps": one.steps,
        "sampler": one.sampler,
        "seed": one.seed,
        "count": one.count,
        "cost": one.cost,
        "url": address(one.job),
    }


def accepted(tickets: Iterable[Ticket]) -> dict[str, Any]:
    """Return the first ticket with the ids of all (permutations make several) and every note once."""
    shown = [ticket(one) for one in tickets]
    notes = list(dict.fromkeys(note for one in shown for note in one["notes"]))
    return {**shown[0], "ids": [one["id"] for one in shown], "jobs": shown, "notes": notes}


def job(view: View, reader: Member) -> dict[str, Any]:
    """Return a job as `reader` sees it."""
    yours = view.member_id == reader.id
    return {
        "id": view.id,
        "state": view.state,
        "action": view.action,
        "prompt": view.prompt,
        "words": _words(view.prompt),
        "author": {"name": view.member_name, "you": yours},
        "may_cancel": yours or reader.moderator,
        "may_decide": reader.moderator,
        "created": view.created,
        "started": view.started,
        "finished": view.finished,
        "seconds": view.seconds,
        "ms_per_step": view.ms_per_step,
        "place": view.ahead,
        "eta": view.eta,
        "step": view.step,
        "of": view.of,
        "percent": 100 if view.state == "finished" else sentences.percent(view.step, view.of),
        "cost": view.cost,
        "worker": view.worker,
        "starting": view.starting,
        "cancelling": view.cancelling,
        "reason": _reason(view),
        "why": view.why,
        "notes": list(view.notes),
        "parent": None if view.parent is None else {"id": view.parent[0], "picture": view.parent[1] + 1},
        **_task(view),
        **_results(view),
    }


def _words(prompt: str) -> str:
    """Return the prompt without its flags, as the start of another prompt: an old seed must not come along."""
    try:
        return split(prompt)[0]
    except Refused:  # from an earlier version's grammar
        return prompt


def _reason(view: View) -> str:
    if view.state == "cancelled" and not view.reason:
        return sentences.cancelled(view.step, view.of)
    return view.reason


def _task(view: View) -> dict[str, Any]:
    task = view.recipe
    if isinstance(task, Recipe):
        footer = sentences.footer(task, view.seconds, view.ms_per_step, view.enlargement)
        return {"task": "develop", **_recipe(task), "footer": footer}
    shot = view.pictures[0] if view.pictures else None
    footer = "" if shot is None else sentences.enlarged(task.factor, shot.width, shot.height, task.method)
    return {"task": "enlarge", "count": 1, "factor": task.factor, "method": task.method, "footer": footer}


def _recipe(recipe: Recipe) -> dict[str, Any]:
    return {
        "model": recipe.model,
        "sampler": recipe.sampler,
        "steps": recipe.steps,
        "seed": recipe.seed,
        "guidance": recipe.guidance,
        "interval": [recipe.guidance_start, recipe.guidance_stop],
        "loras": [{"name": lora.name, "weight": lora.weight} for lora in recipe.loras],
        "negative": recipe.negative,
        "width": recipe.width,
        "height": recipe.height,
        "count": recipe.count,
        "exact": recipe.bucket is not None,
        "start": _start(recipe.start),
        "walk": None if recipe.walk is None else msgspec.to_builtins(recipe.walk),
        "walkable": walkable(recipe),
        "stopped": recipe.last if recipe.last < recipe.steps else None,
    }


def _start(start: Forward | Branch | None) -> dict[str, Any] | None:
    """Return what it began with: the number of init images, or a step of its parent; None for noise."""
    if isinstance(start, Branch):
        return {"step": start.left, "fresh": start.fresh}
    if isinstance(start, Forward):
        return {"pictures": len(start.pictures), "strength": start.strength, "mask": start.mask is not None}
    return None


@cache
def _kinds() -> tuple[Kind, ...]:
    """Return the kinds of films that can be made here; installed packages do not change at run time."""
    return available()


def _results(view: View) -> dict[str, Any]:
    base, hidden = address(view.id), held(view)
    shots = [
        {
            "n": shot.index + 1,
            "url": f"{base}/pictures/{shot.index + 1}.png",
            "sha256": shot.sha256,
            "width": shot.width,
            "height": shot.height,
            "held": why(shot.index, shot) if shot.index in hidden else "",
            **_ways(base, shot.index + 1, shown=shot.index not in hidden, ladder=shot.index in view.ladders),
        }
        for shot in view.pictures
    ]
    complete = view.state == "finished"
    filmed = complete and any(image not in hidden for image in view.ladders)
    return {
        "pictures": shots,
        "grid": f"{base}/grid.png" if complete and shots else None,
        "film": f"{base}/film.webp" if filmed else None,
        "films": {kind: f"{base}/film.{kind}" for kind in _kinds()} if filmed else {},
        "rungs": f"{base}/rungs" if filmed else None,
        "walks": {kind: f"{base}/walk.{kind}" for kind in _kinds()} if view.walk else {},
    }


def _ways(base: str, number: int, *, shown: bool, ladder: bool) -> dict[str, str | None]:
    """Return the addresses that a picture has only while it may be shown."""
    return {
        "dissolve": f"{base}/dissolve/{number}.webp" if shown else None,
        "return": f"{base}/return/{number}.webp" if shown and ladder else None,
        "branch": f"{base}/branch/{number}" if shown and ladder else None,
    }


def frame(moment: Developing) -> dict[str, Any]:
    """Return live previews: image number → JPEG in base64, only the images that changed.

    They are inside the event and not behind an address. A frame is a few kilobytes; an address would cost another
    request on a browser's six connections, and could arrive after its picture is finished.
    """
    return {
        "id": moment.job,
        "step": moment.step,
        "of": moment.of,
        "percent": sentences.percent(moment.step, moment.of),
        "seconds_left": moment.seconds_left,
        "frames": {str(index + 1): base64.b64encode(jpeg).decode() for index, jpeg in sorted(moment.frames.items())},
    }


def loading(moment: Readying) -> dict[str, Any]:
    """Return how far a model is loaded: percent, and the sentence for those who wait."""
    percent = sentences.percent(round(moment.done * 1000), 1000)
    said = sentences.loading(moment.model, moment.done, moment.size)
    return {"id": moment.job, "model": moment.model, "percent": percent, "sentence": said}


def _model(warm: Warm) -> dict[str, Any]:
    return {
        "name": warm.name,
        "size": warm.size,
        "enlargement": warm.enlargement,
        "steps": warm.steps,
        "loaded": warm.loaded,
        "samplers": list(warm.samplers),
        "loras": [lora.name for lora in warm.loras],
    }


def room(workers: Mapping[str, Presence], *, warming: bool = False, starting: str = "") -> dict[str, Any]:
    """Return every live worker with its device and its models.

    `warming`: one is sure to come soon. `starting`: the sentence on one that is starting.
    """
    shown = [
        {
            "name": one.worker,
            "device": one.device,
            "rows": one.rows,
            "free": one.free,
            "models": [_model(warm) for warm in one.models],
        }
        for one in sorted(workers.values(), key=lambda one: one.worker)
    ]
    models = sorted({model["name"] for one in shown for model in one["models"]})
    absent = starting or (WARMING if warming else sentences.NO_WORKER)
    return {
        "online": bool(shown),
        "warming": (warming or bool(starting)) and not shown,
        "workers": shown,
        "models": models,
        "loaded": sorted({model["name"] for one in shown for model in one["models"] if model["loaded"]}),
        "sentence": "" if shown else absent,
    }
