"""LoRAs, control and reference pictures in a prompt: `--lora name:0.8`, `<lora:name:0.8>`, `--control canny:0.8:0-0.6`,
`--reference face:0.5`. Pure.

LoRAs are matched to those of a model. Of pictures the flags say which network follows one and how much; the pictures
themselves come beside the prompt.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from rapidfuzz import fuzz, process

from bot.domain.errors import UserError
from bot.domain.texts import shorten
from engine.contract import MAX_CONTROLS, MAX_LORAS, MAX_REFERENCES, Lora, Preprocessor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.contract import ModelProfile

MAX_WEIGHT = 4.0  # as in `engine.contract.Lora`
NONE = "none"  # removes the LoRAs or pictures of a remixed job
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


MAX_SCALE = 2.0  # as in `engine.contract.ControlImage`
DEFAULT_CONTROL_SCALE = 1.0
DEFAULT_REFERENCE_SCALE = 0.6
PREPROCESSORS: tuple[Preprocessor, ...] = get_args(Preprocessor)
CONTROL_RANGE = (
    f"a name, or name:scale:start-stop as in canny:0.8:0-0.6, scale from 0 to {MAX_SCALE:g}; behind it "
    f"{', '.join(PREPROCESSORS[1:])} or none says how the picture is prepared; at most {MAX_CONTROLS}, or {NONE}"
)
REFERENCE_RANGE = (
    f"a name, a scale from 0 to {MAX_SCALE:g}, or name:scale as in face:0.5; at most {MAX_REFERENCES}, or {NONE}"
)

_DECIMAL = r"(?:[0-9]{1,3}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})"
_SCALE = re.compile(_DECIMAL)
_INTERVAL = re.compile(rf"({_DECIMAL})-({_DECIMAL})")


@dataclass(frozen=True)
class RequestedControl:
    """A control network for a picture. Without a `scale` or `preprocessor`, the usual one applies.

    `start` and `stop`: where it holds, as fractions of the steps.
    """

    name: str
    scale: float | None = None
    start: float = 0.0
    stop: float = 1.0
    preprocessor: Preprocessor | None = None


@dataclass(frozen=True)
class RequestedReference:
    """A reference adapter for a picture; without a name the model's first one."""

    name: str = ""
    scale: float | None = None


def parse_controls(texts: Sequence[str]) -> tuple[RequestedControl, ...]:
    """Parse "canny", "canny:0.8" or "canny:0.8:0-0.6:none"; empty for "none". Raises `UserError` for anything else."""
    if _is_none(texts):
        return ()
    controls = tuple(_parse_control(text) for text in texts)
    if len(controls) > MAX_CONTROLS:
        raise UserError(f"--control may stand {MAX_CONTROLS} times; here it stands {len(controls)} times.")
    return controls


def parse_references(texts: Sequence[str]) -> tuple[RequestedReference, ...]:
    """Parse "face", "0.5" or "face:0.5"; empty for "none". Raises `UserError` for anything else."""
    if _is_none(texts):
        return ()
    references = tuple(_parse_reference(text) for text in texts)
    if len(references) > MAX_REFERENCES:
        raise UserError(f"--reference may stand {MAX_REFERENCES} times; here it stands {len(references)} times.")
    return references


def is_scale(text: str) -> bool:
    """Return whether a part of a flag's value is a scale."""
    return bool(_SCALE.fullmatch(text)) and float(text) <= MAX_SCALE


def is_control_part(text: str) -> bool:
    """Return whether it is a scale, an interval or a preprocessor, as it may stand behind a control's name."""
    return _add_part(RequestedControl(""), text.translate(_DASHES)) is not None


def _is_none(texts: Sequence[str]) -> bool:
    return [text.strip().lower() for text in texts] == [NONE]


def _parse_control(text: str) -> RequestedControl:
    name, *parts = (part.strip().translate(_DASHES) for part in text.split(":"))
    control = RequestedControl(name) if _NAME.fullmatch(name) and len(parts) <= 3 else None
    for part in parts:
        control = control and _add_part(control, part)
    if control is None:
        raise _invalid("control", text, CONTROL_RANGE)
    return control


def _add_part(control: RequestedControl, part: str) -> RequestedControl | None:
    """Return the control with a scale, an interval or a preprocessor; None for anything else."""
    if is_scale(part):
        return replace(control, scale=float(part))
    if (match := _INTERVAL.fullmatch(part)) and 0 <= float(match[1]) < float(match[2]) <= 1:
        return replace(control, start=float(match[1]), stop=float(match[2]))
    for preprocessor in PREPROCESSORS:
        if part.lower() == preprocessor:
            return replace(control, preprocessor=preprocessor)
    return None


def _parse_reference(text: str) -> RequestedReference:
    name, colon, scale = (part.strip() for part in text.partition(":"))
    if not colon and _SCALE.fullmatch(name):
        name, scale = "", name
    has_bad_scale = bool(colon or scale) and not is_scale(scale)
    if (name and not _NAME.fullmatch(name)) or not (name or scale) or has_bad_scale:
        raise _invalid("reference", text, REFERENCE_RANGE)
    return RequestedReference(name, float(scale) if scale else None)


def _invalid(flag: str, text: str, value_range: str) -> UserError:
    problem = f"--{flag} {shorten(text, 40)} is not possible" if text.strip() else f"--{flag} needs a value"
    return UserError(f"{problem}: it takes {value_range}.")
