"""Units of AUTOMATIC1111's ControlNet extension as control and reference pictures. Pure.

A unit whose module is an IP-Adapter becomes a reference picture. Without a picture of its own, a unit follows the
picture that the request begins with, as there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec

from bot.apis.a1111.names import strip_hash
from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.web.base64_pictures import decode_picture
from engine.contract import MAX_CONTROLS, MAX_REFERENCES, ModelProfile, Preprocessor, convert

SCRIPT = "controlnet"
MAX_UNITS = MAX_CONTROLS + MAX_REFERENCES
REFERENCE_MODULE = "ip-adapter"
MODULES: Mapping[str, Preprocessor] = MappingProxyType(  # how its modules' names begin
    {
        "none": "none",
        "canny": "canny",
        "depth": "depth",
        "openpose": "pose",
        "dw_openpose": "pose",
        "lineart": "lineart",
    }
)
MODULE_NAMES: Mapping[Preprocessor, str] = MappingProxyType(
    {"none": "none", "canny": "canny", "depth": "depth", "pose": "openpose", "lineart": "lineart"}
)


class ControlUnit(msgspec.Struct, frozen=True):
    """One unit, with the fields that mean something here."""

    enabled: bool = True
    image: str | None = None
    input_image: str | None = None  # its earlier name
    module: str = "none"
    model: str = "None"
    weight: float = 1.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0


@dataclass(frozen=True)
class UnitPictures:
    """Control and reference pictures, each with the value of its flag."""

    controls: tuple[str, ...] = ()
    control_pictures: tuple[bytes, ...] = ()
    references: tuple[str, ...] = ()
    reference_pictures: tuple[bytes, ...] = ()


def read_units(scripts: Mapping[str, Any] | None) -> list[ControlUnit]:
    """Return the enabled units of a request. Raises `UserError` for other scripts, and for malformed units."""
    units = list[ControlUnit]()
    for name, script in (scripts or {}).items():
        if name.strip().lower() != SCRIPT:
            raise UserError(f"Script “{shorten(name, 60)}” not found: Darkroom runs no scripts but ControlNet.")
        try:
            units += convert(script, _Script, strict=False).args
        except msgspec.ValidationError as error:
            raise UserError(f"A unit of ControlNet can't be read: {error}.") from error
    units = [unit for unit in units if unit.enabled]
    if len(units) > MAX_UNITS:
        raise UserError(f"ControlNet takes at most {MAX_UNITS} units here, and these are {len(units)}.")
    return units


class _Script(msgspec.Struct, frozen=True):
    args: list[ControlUnit] = []


def read_unit_pictures(units: Iterable[ControlUnit], init_image: bytes | None) -> UnitPictures:
    """Return the pictures of the units, in order. Raises `UserError`."""
    controls = list[tuple[str, bytes]]()
    references = list[tuple[str, bytes]]()
    for unit in units:
        name = strip_hash(unit.model)
        picture = _read_picture(unit, init_image)
        if unit.module.lower().startswith(REFERENCE_MODULE):
            references.append((f"{name}:{_format(unit.weight)}", picture))
            continue
        interval = f"{_format(unit.guidance_start)}-{_format(unit.guidance_end)}"
        controls.append((f"{name}:{_format(unit.weight)}:{interval}:{find_preprocessor(unit.module)}", picture))
    return UnitPictures(
        tuple(flag for flag, _ in controls),
        tuple(picture for _, picture in controls),
        tuple(flag for flag, _ in references),
        tuple(picture for _, picture in references),
    )


def find_preprocessor(module: str) -> Preprocessor:
    """Return what a module makes of a picture. Raises `UserError`."""
    for beginning, preprocessor in MODULES.items():
        if (module.strip().lower() or "none").startswith(beginning):
            return preprocessor
    names = ", ".join((*MODULE_NAMES.values(), REFERENCE_MODULE))
    raise UserError(f"There is no ControlNet module “{shorten(module, 60)}” here: {names} are.", 404)


def list_modules(profiles: Iterable[ModelProfile]) -> list[str]:
    """Return the modules that workers can run."""
    profiles = list(profiles)
    preprocessors = {preprocessor for profile in profiles for preprocessor in profile.preprocessors}
    references = [REFERENCE_MODULE] if any(profile.references for profile in profiles) else []
    return [name for preprocessor, name in MODULE_NAMES.items() if preprocessor in preprocessors] + references


def _read_picture(unit: ControlUnit, init_image: bytes | None) -> bytes:
    if text := unit.image or unit.input_image:
        return decode_picture(text, "control picture")
    if init_image is None:
        raise UserError("A unit of ControlNet needs a picture (image).")
    return init_image


def _format(value: float) -> str:
    return f"{round(value, 4):g}"
