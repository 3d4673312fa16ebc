"""The engine's part of `darkroom doctor`: does each model load, on which device, how fast. One line each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine import models
from engine.calibration.calibration import Calibration, calibrate, read_device_name
from engine.contract import JobRejected, ModelProfile, Quantization
from engine.device.memory import choose_device
from engine.model_cache.catalog_file import read_catalog
from engine.model_cache.discovery import choose_for_one
from engine.models.autoencoder.autoencoder_files import AUTOENCODER_KIND
from engine.models.control_conditioner import ControlConditioner
from engine.models.control_networks import CONTROL_KIND, ControlFile, explain_mismatch
from engine.models.embedding_files import EMBEDDING_KIND
from engine.models.families.diffusers_family import AddedFiles
from engine.models.family import Family
from engine.models.files.added_kind import (
    AUTOENCODER_FOLDER,
    CONTROL_FOLDER,
    EMBEDDING_FOLDER,
    REFERENCE_FOLDER,
    AddedKind,
)
from engine.models.quantization import find_obstacle
from engine.models.reference_pictures import REFERENCE_KIND, AdapterFile, ReferenceConditioner
from engine.output.picture_check import PictureCheck
from engine.process.load_progress import format_size
from engine.process.memory_requests import QuantizationRequests
from engine.process.settings import PictureCheckSettings, WorkerSettings
from engine.upscaling.super_resolver import SuperResolver

MEASURE_AGAIN_HINT = "If the machine was busy during this measurement: run darkroom doctor --remeasure, then restart."
QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "float8", "int4", "nf4", "gguf")
Finding = tuple[str, bool, str, str]  # name, whether it is fine, the finding, the fix


def check_model(settings: WorkerSettings, model: str = "embedded", *, force: bool = False) -> Iterator[Finding]:
    """Yield device, quantisations, number format and speed of one model, from its calibration.

    It measures now if there is no calibration, or with `force`.
    """
    device = choose_device()
    requests = settings.quantization_requests
    data = settings.data
    yield "device", True, f"{device.type}: {read_device_name(device)}", ""
    yield _describe_quantizations(device, requests)
    try:
        resolver = SuperResolver.load(settings.upscaler, device)
    except JobRejected as error:
        yield "upscaler", False, str(error), "Name another file with DARKROOM_UPSCALER, or none."
        return
    yield "upscaler", True, _describe_upscaler(resolver), ""
    try:
        path, chosen = choose_for_one(model, requests, data, device, settings.offload)
        family = models.load_model(
            path, data, device=device, resolver=resolver, quantization=chosen.quantization, offload=chosen.offload
        )
    except (JobRejected, OSError, ValueError) as error:
        yield "model", False, f"{model} does not load: {error}", "Install again: pip install 'darkroom-bot[all]'."
        return
    if chosen.size:
        yield "memory", True, f"{family.name} takes about {format_size(chosen.size)}, {chosen.quantization}", ""
    calibration = calibrate(family, data / "calibration.json", force=force)
    yield from _calibration_findings(family, calibration)
    yield from check_added_files(data, family, calibration.to_model_profile(family))


def _describe_quantizations(device: torch.device, requests: QuantizationRequests) -> Finding:
    """Say how weights can be stored here, and whether that includes what was asked for."""
    obstacles = {each: find_obstacle(each, device) for each in QUANTIZATIONS}
    present = ", ".join(each for each, obstacle in obstacles.items() if not obstacle) or "none"
    for request in (requests.network, requests.text_request):
        if obstacles.get(request):
            return "weights", False, f"{request} cannot be had here: {obstacles[request]}", f"Choose of: {present}."
    lacking = "; ".join(f"not {each}, since {obstacle}" for each, obstacle in obstacles.items() if obstacle)
    return "weights", True, f"can be stored as {present}{f' ({lacking})' if lacking else ''}", ""


def check_picture_check(settings: PictureCheckSettings) -> Iterator[Finding]:
    """Load the picture check and try it once."""
    try:
        check = PictureCheck.load(settings.folder, settings.labels, settings.threshold, choose_device())
    except JobRejected as error:
        yield "check", False, str(error), "Name another folder with DARKROOM_PICTURE_CHECK, or none."
        return
    yield "check", True, f"{check.name} flags {', '.join(check.labels)} from {settings.threshold:g} on", ""


def _describe_upscaler(resolver: SuperResolver | None) -> str:
    if resolver is None:
        return "none is installed: pictures are upscaled by Lanczos, which adds no detail"
    ms = resolver.measure_ms_per_megapixel() * 0.256**2
    return f"{resolver.name} ×{resolver.scale}, {ms:.0f} ms for a picture of 256 × 256 pixels"


def _calibration_findings(family: Family, calibration: Calibration) -> Iterator[Finding]:
    dtype_times = ", ".join(f"{dtype} {ms:.1f} ms" for dtype, ms in calibration.dtype_ms.items())
    yield "dtype", True, f"{calibration.dtype} (two rows: {dtype_times})", ""
    grid_seconds = calibration.steps * 8 * calibration.row_ms / 1000
    speed = (
        f"{calibration.row_ms * 8:.1f} ms a step of a grid of four, {calibration.steps} steps of "
        f"{calibration.sampler} in {grid_seconds:.0f} s"
    )
    yield "speed", True, f"{family.name}: {speed}", MEASURE_AGAIN_HINT if calibration.steps < 1000 else ""


MAX_FILES = 256  # of a kind
REMEDY = "Take it away, or offer a model that it fits and start it once."


class AddedCheck(NamedTuple):
    """A kind of added files: its folder, what a model announces, why one does not fit a model."""

    title: str
    kind: AddedKind[Any]
    folder: str
    announced: str  # the field of `ModelProfile`
    explain: Callable[[AddedFiles, Any], str]


def _explain_control(family: AddedFiles, file: ControlFile) -> str:
    conditioners = [each for each in family.conditioners if isinstance(each, ControlConditioner)]
    if not conditioners:
        return "it takes no control networks"
    return explain_mismatch(file, conditioners[0].collection.target)


def _explain_reference(family: AddedFiles, file: AdapterFile) -> str:
    conditioners = [each for each in family.conditioners if isinstance(each, ReferenceConditioner)]
    return (conditioners[0].find_mismatch(file) or "") if conditioners else "it takes no reference pictures"


CHECKS = (
    AddedCheck("embedding", EMBEDDING_KIND, EMBEDDING_FOLDER, "embeddings", AddedFiles.explain_embedding),
    AddedCheck("control", CONTROL_KIND, CONTROL_FOLDER, "controls", _explain_control),
    AddedCheck("reference", REFERENCE_KIND, REFERENCE_FOLDER, "references", _explain_reference),
    AddedCheck("vae", AUTOENCODER_KIND, AUTOENCODER_FOLDER, "autoencoders", AddedFiles.explain_autoencoder),
)


def check_added_files(data: Path, family: Family, profile: ModelProfile) -> Iterator[Finding]:
    """Yield a line for each file that cannot be read, or fits neither the loaded model nor one that was offered here.

    `profile` is the loaded model's. A last line a kind counts those that fit.
    """
    profiles = [profile, *(entry.model_profile for entry in read_catalog(data).values())]
    for check in CHECKS:
        fitting_names = list[str]()
        for name in check.kind.list_names(data / check.folder)[:MAX_FILES]:
            if finding := _check_file(check, data / check.folder, name, family, profiles):
                yield finding
            else:
                fitting_names.append(name)
        if fitting_names:
            yield check.title, True, f"{len(fitting_names)} fit: {', '.join(fitting_names)[:200]}", ""


def _check_file(
    check: AddedCheck, folder: Path, name: str, family: Family, profiles: Sequence[ModelProfile]
) -> Finding | None:
    """Return what is wrong with a file; None: it fits a model."""
    try:
        file = check.kind.find(folder, name)
    except JobRejected as rejection:
        return check.title, False, rejection.sentence.rstrip("."), "Replace it, or take it away."
    offered: list[Any] = [part for profile in profiles for part in getattr(profile, check.announced)]
    if any((part.name, part.revision) == (file.name, file.revision) for part in offered):
        return None
    models = ", ".join(dict.fromkeys(each.name for each in profiles))[:200]
    reason = check.explain(family, file) if isinstance(family, AddedFiles) else ""
    return (
        check.title,
        False,
        f"the {check.kind.noun} {name} fits none of {models}" + (f": {reason}" if reason else ""),
        REMEDY,
    )
