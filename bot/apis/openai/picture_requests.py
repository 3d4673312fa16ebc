"""What OpenAI's fields mean here: from a body to a `PictureRequest`. `docs/openai-api.md` has the table. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from bot.apis.openai.bodies import DrawBody
from bot.apis.openai.errors import FieldError
from bot.domain.errors import UserError
from bot.jobs.attended_requests import PictureRequest
from bot.jobs.init_images import InitImages
from bot.jobs.model_catalog import ModelCatalog
from bot.prompt.concepts import escape_braces
from bot.prompt.parsed_prompt import MAX_RATIO
from engine.contract import MAX_COUNT

QUALITY_FACTORS: Mapping[str, float] = MappingProxyType({"low": 0.5, "high": 2.0, "hd": 2.0})  # on the usual steps
DEFAULT_MODELS = re.compile(r"auto|default|darkroom|dall-e-.*|(chat)?gpt-image-.*")  # names of the default model here
SIZE_PATTERN = re.compile(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})")
FLAG_PATTERN = re.compile(r"--([a-z-]+)")
FIELDS_BY_FLAG: Mapping[str, str] = MappingProxyType(
    {
        "ar": "size",
        "count": "n",
        "repeat": "n",
        "no": "negative_prompt",
        "model": "model",
        "quality": "quality",
        "seed": "seed",
        "steps": "steps",
        "evaluations": "evaluations",
        "sampler": "sampler",
        "guidance": "guidance",
        "strength": "strength",
    }
)


def build_request(
    body: DrawBody, catalog: ModelCatalog, images: InitImages | None = None, key: str | None = None
) -> PictureRequest:
    """Return what the body asks for. Raises `FieldError` for a field that cannot be met.

    Flags in the prompt count, where no field says otherwise. Braces are plain text: `n` says how many pictures come.
    """
    if body.background == "transparent":
        raise FieldError("background", "No model here draws a transparent background: use opaque or auto.")
    model = find_model(body.model, catalog)
    options: dict[str, Any] = {
        "model": model,
        "ar": parse_size(body.size),
        "quality": QUALITY_FACTORS.get(body.quality or ""),
        "seed": body.seed,
        "steps": body.steps,
        "evaluations": body.evaluations,
        "sampler": body.sampler,
        "guidance": body.guidance,
        "negative": body.negative_prompt,
        "strength": body.strength,
        **count_pictures(body),
        "edit": body.strength is None and _is_edit_by_words(images, model, catalog),
    }
    chosen_options = {name: value for name, value in options.items() if value is not None}
    return PictureRequest(escape_braces(body.prompt), chosen_options, images, key)


def count_pictures(body: DrawBody) -> dict[str, int]:
    """Return how many pictures each job has, and how many jobs: of one size, so that all are admitted or none."""
    n = body.n or 1
    if body.seed is not None and n > MAX_COUNT:
        raise FieldError("n", f"With a seed n is at most {MAX_COUNT}: further pictures would be the same again.")
    count = next(count for count in range(MAX_COUNT, 0, -1) if n % count == 0)
    return {"count": count, "repeat": n // count}


def parse_size(size: str | None) -> str | None:
    """Return a size as a ratio; None where the model chooses. A model draws that shape in the size that it knows."""
    if size in (None, "auto"):
        return None
    if (match := SIZE_PATTERN.fullmatch(size)) is None:
        raise FieldError("size", "The size is auto, or as 1536x1024: width and height in pixels.")
    width = int(match[1])
    height = int(match[2])
    if max(width, height) > MAX_RATIO * min(width, height):
        raise FieldError("size", f"One side is at most {MAX_RATIO} times as long as the other.")
    divisor = math.gcd(width, height)
    return f"{width // divisor}:{height // divisor}"


def find_model(name: str | None, catalog: ModelCatalog) -> str | None:
    """Return the model of that name; None for the default one, as which OpenAI's own names count."""
    names = {known.lower(): known for known in catalog.model_names()}
    if not name or name.lower() in names:
        return names[name.lower()] if name else None
    if DEFAULT_MODELS.fullmatch(name.lower()):
        return None
    raise FieldError("model", f"The model {name[:64]!r} does not exist here.", status=404, code="model_not_found")


def _is_edit_by_words(images: InitImages | None, model: str | None, catalog: ModelCatalog) -> bool | None:
    """Return whether a model changes the pictures as the prompt says; else it begins with them."""
    if images is None or images.mask is not None:
        return None
    count = len(images.pictures)
    entry = catalog.find_entry(model) if model else catalog.find_editor(pictures=count)
    return True if entry and entry.profile.edits and count <= entry.profile.max_edit_pictures else None


def name_flag(error: UserError, *, has_images: bool) -> UserError:
    """Return the refusal of a request with the field that stands for the flag that it is about.

    Without such a flag it is about the prompt, unless there are images, which may be the reason too.
    """
    match = FLAG_PATTERN.match(error.sentence)
    field = FIELDS_BY_FLAG.get(match[1]) if match else None
    field = field or (None if has_images else "prompt")
    return FieldError(field, error.sentence) if field and error.status == 422 else error
