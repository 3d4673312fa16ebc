"""What a Darkroom says and takes beyond OpenAI's image API, so that one can stand behind another. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast, get_args

from engine.backend.drawing import BackendModel, DrawRequest
from engine.backend.model_names import choose_multiple
from engine.backend.sampler_titles import sort_samplers
from engine.contract import Sampler

USUAL_SIZE = 512
USUAL_STEPS = 20
USUAL_GUIDANCE = 7.0


def describe_darkroom_model(name: str, info: Mapping[str, Any], size: int) -> BackendModel:
    """Return a model as `GET /v1/models` of a Darkroom describes it. `size`: in place of its own; 0: its own."""
    size = size or _read_number(info.get("size"), 16, 2048, USUAL_SIZE)
    named = info.get("samplers")
    known: list[Sampler] = [each for each in get_args(Sampler) if isinstance(named, list) and each in cast(Any, named)]
    title = str(info["id"])
    return BackendModel(
        name=name,
        title=title,
        size=size,
        multiple=choose_multiple(size),
        max_pixels=4 * size * size,
        samplers=sort_samplers(known) or ("native",),
        steps=_read_number(info.get("steps"), 1, 1000, USUAL_STEPS),
        guidance=USUAL_GUIDANCE,
        lacks=("tile",),
        version=hashlib.sha256(title.encode()).hexdigest(),
    )


def make_darkroom_fields(request: DrawRequest) -> dict[str, Any]:
    """Return a request's further fields. The usual guidance is left out: only the other Darkroom knows its model's."""
    fields: dict[str, Any] = {"seed": request.seed, "steps": request.steps, "sampler": request.sampler}
    fields["evaluations"] = "all"  # its own default might skip some, and nothing here says so
    if request.guidance != request.model.guidance:
        fields["guidance"] = request.guidance
    if request.negative:
        fields["negative_prompt"] = request.negative
    if request.picture is not None:
        fields["strength"] = request.strength
    return fields


def _read_number(value: object, least: int, most: int, default: int) -> int:
    return value if isinstance(value, int) and least <= value <= most else default
