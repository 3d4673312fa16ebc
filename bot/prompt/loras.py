"""LoRAs in a prompt: `--lora name:0.8` and `<lora:name:0.8>`, parsed and matched to those of a model."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rapidfuzz import fuzz, process

from bot.domain.errors import UserError
from bot.domain.texts import shorten
from engine.contract import MAX_LORAS, Lora

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.contract import ModelProfile

MAX_WEIGHT = 4.0  # as in `engine.contract.Lora`
NONE = "none"  # removes the LoRAs of a remixed job
VALUE_RANGE = f"a name, or name:weight from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}, at most {MAX_LORAS} of them, or {NONE}"
FILE_SUFFIX = ".safetensors"

_TAG = re.compile(r"<lora:([^<>]{0,200})>", re.IGNORECASE)
_COMMAS = re.compile(r"\s*,(?:\s*,)*")  # left over from "fox, <lora:a>, <lora:b>, cute"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.contract.Name`
_WEIGHT = re.compile(r"[+-]?(?:[0-9]{1,3}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})")
_DASHES = str.maketrans("–—−", "---")


@dataclass(frozen=True)
class RequestedLora:
    """A requested LoRA; without a `weight`, its default weight applies."""

    name: str
    weight: float | None = None


def extract_tags(text: str) -> tuple[str, tuple[str, ...]]:
    """Return `text` without its tags, and the content of each tag: "name:0.8"."""
    tags = tuple(match[1].strip() for match in _TAG.finditer(text))
    return (_COMMAS.sub(",", _TAG.sub(" ", text)).strip(" ,"), tags) if tags else (text, ())


def parse_loras(texts: Sequence[str]) -> tuple[RequestedLora, ...]:
    """Parse "name" or "name:0.8"; the last weight of a name counts. Empty for "none". Raises `UserError` for anything
    else.
    """
    if [text.strip().lower() for text in texts] == [NONE]:
        return ()
    return merge_loras(_parse_lora(text) for text in texts)


def merge_loras(loras: Iterable[RequestedLora]) -> tuple[RequestedLora, ...]:
    """Return each name once, in order; of several with one name the last. Raises `UserError` for more than four."""
    unique_loras = tuple({lora.name.lower(): lora for lora in loras}.values())
    if len(unique_loras) > MAX_LORAS:
        raise UserError(f"--lora may stand for {MAX_LORAS} LoRAs at once; these are {len(unique_loras)}.")
    return unique_loras


def _parse_lora(text: str) -> RequestedLora:
    name, colon, weight = (part.strip() for part in text.partition(":"))
    name = name.removesuffix(FILE_SUFFIX)
    weight = weight.translate(_DASHES)
    is_invalid = not _NAME.fullmatch(name) or bool(colon and not _WEIGHT.fullmatch(weight))
    if is_invalid or (colon and abs(float(weight)) > MAX_WEIGHT):
        problem = f"--lora {shorten(text, 40)} is not possible" if text.strip() else "--lora needs a value"
        raise UserError(f"{problem}: it takes {VALUE_RANGE}.")
    return RequestedLora(name, float(weight) if colon else None)


def resolve_loras(requested_loras: Iterable[RequestedLora], model_profile: ModelProfile) -> tuple[Lora, ...]:
    """Return the model's LoRAs with their revisions, without those of weight 0. Raises `UserError` if one is
    missing.
    """
    available = {requested.name.lower(): requested for requested in model_profile.loras}
    resolved_loras: list[Lora] = []
    for requested in requested_loras:
        if (lora := available.get(requested.name.lower())) is None:
            raise UserError(_missing_text(requested.name, model_profile))
        weight = lora.weight if requested.weight is None else requested.weight
        if not math.isclose(weight, 0.0, abs_tol=1e-9):
            resolved_loras.append(Lora(lora.name, weight, lora.revision))
    return tuple(resolved_loras)


def _missing_text(name: str, model_profile: ModelProfile) -> str:
    if not model_profile.loras:
        return (
            f"There is no LoRA for {model_profile.name}: this bot's operator can put one, as {FILE_SUFFIX}, "
            "into loras/ in the worker's data folder."
        )
    nearest_match = process.extractOne(
        name.lower(), {lora.name: lora.name.lower() for lora in model_profile.loras}, scorer=fuzz.ratio
    )
    return f"There is no LoRA {shorten(name, 40)} for {model_profile.name}; the nearest is {nearest_match[2]}."
