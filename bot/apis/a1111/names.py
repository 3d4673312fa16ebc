"""AUTOMATIC1111's names of samplers, schedulers, upscalers and models, and ours for the same. Pure.

It names the sampler and its schedule of noise apart ("DPM++ 2M" and "Karras"), or as one as before 2024. Ours are one
name. Each refusal says which names there are.

Units of AUTOMATIC1111's ControlNet extension as control and reference pictures. Pure.

A unit whose module is an IP-Adapter becomes a reference picture. Without a picture of its own, a unit follows the
picture that the request begins with, as there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec

from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.prompt.flags import SAMPLER_NAMES, find_sampler
from bot.web.request_body import decode_picture
from engine.contract import (
    MAX_CONTROLS,
    MAX_REFERENCES,
    SAMPLER_TITLES,
    ModelProfile,
    Preprocessor,
    Sampler,
    UpscaleMethod,
    convert,
)

AUTOMATIC = "automatic"
UNIFORM = "uniform"
KARRAS = "karras"
SCHEDULERS: Mapping[str, str] = MappingProxyType({AUTOMATIC: "Automatic", UNIFORM: "Uniform", KARRAS: "Karras"})
PLAIN_SCHEDULERS = frozenset(
    {"", AUTOMATIC, UNIFORM, "normal"}
)  # even steps in time, as the samplers have by themselves
UPSCALERS: Mapping[str, UpscaleMethod] = MappingProxyType({"Lanczos": "lanczos", "Darkroom": "gan"})
FOREIGN_UPSCALERS: Mapping[str, UpscaleMethod] = MappingProxyType(  # networks for the same task, which clients name
    {"r-esrgan 4x+": "gan", "esrgan_4x": "gan", "r-esrgan general 4xv3": "gan"}
)
NO_UPSCALER = "none"
_HASH = re.compile(r"\s*\[[0-9a-fA-F]{1,64}\]$")  # behind a model's title
_SUFFIX = re.compile(r"\.(?:safetensors|ckpt)$")


class WebuiSampler(msgspec.Struct, frozen=True):
    """A sampler in the list: its name there, and other names that requests may use."""

    name: str
    aliases: Sequence[str]
    options: dict[str, str] = {}


def name_sampler(sampler: Sampler) -> str:
    """Return the name for AUTOMATIC1111's clients: its own name where it has the sampler."""
    title = SAMPLER_TITLES[sampler]
    return title if find_sampler(title) == sampler else sampler


def list_samplers(first: ModelProfile, profiles: Iterable[ModelProfile]) -> list[WebuiSampler]:
    """Return every sampler that a model takes: first the usual one of `first`, then its others, then the rest."""
    samplers = dict[Sampler, None].fromkeys((first.sampler, *first.samplers))
    for profile in profiles:
        samplers |= dict[Sampler, None].fromkeys(profile.samplers)
    return [WebuiSampler(name_sampler(sampler), (sampler,)) for sampler in samplers]


def choose_sampler(name: str, scheduler: str, profile: ModelProfile) -> Sampler | None:
    """Return the sampler of a request; None for the model's usual one. Raises `UserError` for one that it lacks."""
    schedule = scheduler.strip().lower()
    if schedule not in PLAIN_SCHEDULERS and schedule != KARRAS:
        raise UserError(f"There is no scheduler {_quote(scheduler)} here: {_join(SCHEDULERS.values())} are.")
    if not name.strip() and schedule != KARRAS:
        return None
    sampler = find_sampler(name) if name.strip() else profile.sampler
    if sampler is None:
        raise UserError(f"There is no sampler {_quote(name)} here: {_list_titles(profile.samplers)} are.", 404)
    sampler = _find_karras(sampler) if schedule == KARRAS else sampler
    if sampler not in profile.samplers:
        raise UserError(
            f"{profile.name} does not take the sampler {name_sampler(sampler)}: it takes "
            f"{_list_titles(profile.samplers)}."
        )
    return sampler


def _find_karras(sampler: Sampler) -> Sampler:
    if sampler.endswith(f"_{KARRAS}"):
        return sampler
    twins = dict(_list_karras_twins())
    if sampler not in twins:
        raise UserError(
            f"{name_sampler(sampler)} has no Karras schedule here: {_list_titles(twins)} have. Leave the scheduler out."
        )
    return twins[sampler]


def _list_karras_twins() -> Iterator[tuple[Sampler, Sampler]]:
    """Yield each sampler that has a Karras schedule, with that one."""
    for sampler in SAMPLER_NAMES:
        if (twin := find_sampler(f"{sampler}_{KARRAS}")) is not None and twin != sampler:
            yield sampler, twin


def strip_hash(title: str) -> str:
    """Return a title without the hash behind it, as in `dreamer [0a1b2c3d4e]`."""
    return _HASH.sub("", title.strip())


def find_model(name: str, profiles: Sequence[ModelProfile]) -> ModelProfile:
    """Return the model of that title, file name or name; the first of them is no default. Raises `UserError`."""
    bare_name = _SUFFIX.sub("", strip_hash(name)).lower()
    for profile in profiles:
        if profile.name.lower() == bare_name:
            return profile
    raise UserError(f"There is no model {_quote(name)} here: {_join(profile.name for profile in profiles)} are.", 404)


def choose_upscaler(name: str) -> UpscaleMethod:
    """Return the method of an upscaler. Raises `UserError` for none, or one that is not here."""
    methods: dict[str, UpscaleMethod] = {**FOREIGN_UPSCALERS}
    methods |= {title.lower(): method for title, method in UPSCALERS.items()}
    if (method := methods.get(name.strip().lower())) is not None:
        return method
    if name.strip().lower() in ("", NO_UPSCALER):
        raise UserError(f"Name an upscaler in upscaler_1: {_join(UPSCALERS)} are here.")
    raise UserError(f"There is no upscaler {_quote(name)} here: {_join(UPSCALERS)} are.", 404)


def _list_titles(samplers: Iterable[Sampler]) -> str:
    return _join(map(name_sampler, samplers))


def _join(names: Iterable[str]) -> str:
    *others, last = names
    return shorten(f"{', '.join(others)} and {last}" if others else last, 400)


def _quote(name: str) -> str:
    return f"“{shorten(name, 60)}”"


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
