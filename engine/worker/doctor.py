"""The engine's part of `darkroom doctor`: does each model load, on which device, how fast. One line each."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from engine import models
from engine.calibration.calibration import Calibration, calibrate, read_device_name
from engine.contract import Quantization
from engine.contract.rejection import JobRejected
from engine.device.torch_device import choose_device
from engine.model_cache.single_choice import choose_for_one
from engine.models.family import Family
from engine.models.quantization.stored_quantization import find_obstacle
from engine.output.picture_check import PictureCheck
from engine.process.load_progress import format_size
from engine.process.quantization_request import QuantizationRequests
from engine.process.settings import PictureCheckSettings, WorkerSettings
from engine.upscaling.super_resolver import SuperResolver
from engine.worker.added_files_check import check_added_files

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
