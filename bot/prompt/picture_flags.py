"""Control and reference pictures in a prompt: `--control canny:0.8:0-0.6`, `--reference face:0.5`. Pure.

The flags say which network follows a picture and how much; the pictures themselves come beside the prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from bot.domain.errors import UserError
from bot.domain.texts import shorten
from engine.contract import MAX_CONTROLS, MAX_REFERENCES, Preprocessor

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_SCALE = 2.0  # as in `engine.contract.ControlImage`
DEFAULT_CONTROL_SCALE = 1.0
DEFAULT_REFERENCE_SCALE = 0.6
NONE = "none"  # removes the pictures of a remixed job
PREPROCESSORS: tuple[Preprocessor, ...] = get_args(Preprocessor)
CONTROL_RANGE = (
    f"a name, or name:scale:start-stop as in canny:0.8:0-0.6, scale from 0 to {MAX_SCALE:g}; behind it "
    f"{', '.join(PREPROCESSORS[1:])} or none says how the picture is prepared; at most {MAX_CONTROLS}, or {NONE}"
)
REFERENCE_RANGE = (
    f"a name, a scale from 0 to {MAX_SCALE:g}, or name:scale as in face:0.5; at most {MAX_REFERENCES}, or {NONE}"
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.contract.Name`
_DECIMAL = r"(?:[0-9]{1,3}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})"
_SCALE = re.compile(_DECIMAL)
_INTERVAL = re.compile(rf"({_DECIMAL})-({_DECIMAL})")
_DASHES = str.maketrans("–—−", "---")


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
