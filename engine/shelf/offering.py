"""Model discovery: from the names on the command line to entries of the model cache. Loads the models it must.

Blocks for seconds to minutes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from msgspec.structs import replace

from engine import families
from engine.calibration import Calibration, calibrate, keep
from engine.families.additions import additions
from engine.families.checkpoint import configurations
from engine.families.embedded import NAME, WEIGHTS
from engine.families.family import Family
from engine.families.formats import Choice
from engine.families.opening import Told
from engine.families.pipelined import Pipelined
from engine.families.revision import fingerprint, together
from engine.families.source import Source, find
from engine.families.weighing import weigh, weigh_embedded, weigh_in
from engine.job import Dtype, ModelProgress, Warm
from engine.shelf import Model, offered, too_large
from engine.shelf.loader import free
from engine.shelf.offered import Offered
from engine.shelf.stock import Stock
from engine.super_resolver import SuperResolver
from engine.unfit import Unfit

log = logging.getLogger(__name__)

Tell = Callable[[ModelProgress], None]
CALIBRATIONS = "calibration.json"
LORAS = "loras"  # a folder in the data folder


@dataclass(frozen=True)
class Place:
    """Model directory, device and settings; `graphs` and `offload` as in `engine.config.Settings`."""

    data: Path
    device: torch.device
    resolver: SuperResolver | None
    build: str
    graphs: bool = False
    offload: bool = False


@dataclass(frozen=True)
class Found:
    """A discovered model: size, catalog key and entry (None: unknown), and how to load it. `sizes` as in `Model`."""

    name: str
    size: int
    identity: str
    open: Callable[[Told | None], Family]
    known: Offered | None
    sizes: Mapping[Dtype, int]


def find_all(names: Sequence[str], place: Place) -> list[Found]:
    """Find every model. Raises `Unfit` where one is missing, or two have one name."""
    kept, found, loras = offered.read(place.data), list[Found](), _loras(place.data)
    for given in names:
        one = _found(given, place, kept, loras)
        if any(one.name == other.name for other in found):
            raise Unfit(f"Two models are called {one.name}; rename the folder of one.", "worker")
        found.append(one)
    return found


def stocked(
    found: Sequence[Found], place: Place, stock: Stock, tell: Tell = lambda _: None
) -> list[tuple[Model, Calibration]]:  # fmt: skip
    """Load the first model, which most jobs use, and before it every model without a catalog entry. Raises `Unfit`.

    `tell` is called at each stage, in this thread.
    """
    for one in found:
        if one.size > stock.budget:
            raise too_large(one.name, one.size, stock.budget)
    learnt = {one.name: _learnt(one, place, stock, tell, wanted=one is found[0]) for one in (*found[1:], found[0])}
    _keep(found, learnt, place.data)
    return [(_model(one, learnt[one.name], place), learnt[one.name].found) for one in found]


def _found(given: str, place: Place, kept: dict[str, Offered], loras: str) -> Found:
    source = None if given == NAME else find(given, place.data)
    choice = Choice(place.device)
    name, size, revision = _looked_at(source, choice) if source else _embedded()
    upscaler = place.resolver.fingerprint if place.resolver else ""
    identity = offered.identity(name, revision, place.device, upscaler, place.build, loras)

    def opened(told: Told | None) -> Family:
        family = _opened(source, place, told)
        if source is not None and source.fingerprint() != revision:
            raise Unfit(f"The files of the model {name} have changed: restart this worker.", "worker")
        return _settled(family, place)

    sizes = weigh_in(source, choice) if source else dict[Dtype, int]()
    return Found(name, size, identity, opened, kept.get(identity), sizes)


def _looked_at(source: Source, choice: Choice) -> tuple[str, int, str]:
    """Return name, size and revision; fetch what the model needs from the hub now, never while jobs run."""
    size = weigh(source, choice)  # first: its errors say what is wrong with the files
    if source.is_file:
        configurations(source.path, source.name)
    return source.name, size, source.fingerprint()


def _opened(source: Source | None, place: Place, told: Told | None) -> Family:
    """Load the files found at the start: a hub name is not looked up again."""
    if source is None:
        return families.load(NAME, place.data, device=place.device, resolver=place.resolver)
    family = families.load_source(source, place.device, place.resolver, told)
    if isinstance(family, Pipelined):
        family.lora_folder = place.data / LORAS
    return family


def _loras(data: Path) -> str:
    """Return a fingerprint of all LoRAs by name and weights."""
    return together(*(f"{one.name} {one.revision}" for one in found)) if (found := additions(data / LORAS)) else ""


def _settled(family: Family, place: Place) -> Family:
    """Apply offloading and CUDA graphs where the model supports them."""
    if isinstance(family, Pipelined):
        if place.offload:
            family.offload()
        if place.graphs:
            family.forwards.record()
    return family


def _embedded() -> tuple[str, int, str]:
    return NAME, weigh_embedded(), fingerprint(WEIGHTS)


def _learnt(one: Found, place: Place, stock: Stock, tell: Tell, *, wanted: bool) -> Offered:
    """Return the entry of a model; load it where there is none, or where it is `wanted` in memory."""
    if one.known is not None and not wanted:
        log.info("%s is loaded when a job needs it", one.name)
        return one.known
    stock.reserve(one.name, one.size)
    free()
    loading = ModelProgress(model=one.name, phase="load", size=one.size)
    tell(loading)
    family = one.open(lambda done: tell(replace(loading, done=min(1.0, done))))
    stock.put(one.name, family)
    if one.known is None:
        tell(replace(loading, phase="measure", done=1.0))
    found = calibrate(family, place.data / CALIBRATIONS)
    tell(replace(loading, phase="ready", done=1.0))
    return Offered(found.warm(family), found, one.size)


def _model(one: Found, learnt: Offered, place: Place) -> Model:
    kept = [learnt]

    def renew(family: Family) -> Warm:
        return kept[-1].found.warm(family)

    def refine(found: Calibration, family: Family) -> None:
        kept[:] = [Offered(found.repriced(kept[-1].warm), found, one.size)]
        keep(place.data / CALIBRATIONS, family, found)
        offered.keep(place.data, {one.identity: kept[-1]})

    return Model(one.name, one.size, learnt.warm, one.open, renew, refine, one.sizes)


def _keep(found: Sequence[Found], learnt: dict[str, Offered], data: Path) -> None:
    offered.keep(data, {one.identity: learnt[one.name] for one in found})
