"""The engine's part of `darkroom doctor`: does each model load, on which device, how fast. One line each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engine import families
from engine.calibration import Calibration, calibrate, device_name
from engine.config import BadSetting, checking, upscaler
from engine.device import best
from engine.families.family import Family
from engine.picture_check import PictureCheck
from engine.super_resolver import SuperResolver
from engine.unfit import Unfit

AGAIN = "If the machine was busy during this measurement: run darkroom doctor --again, then restart."
Line = tuple[str, bool, str, str]  # name, whether it is fine, the finding, the fix


def measured(data: Path, model: str = "embedded", *, again: bool = False) -> Iterator[Line]:
    """Yield device, number format and speed of one model, from its calibration (measured now if missing or `again`)."""
    device = best()
    yield "device", True, f"{device.type}: {device_name(device)}", ""
    try:
        resolver = SuperResolver.find(upscaler(), device)
    except Unfit as error:
        yield "upscaler", False, str(error), "Name another file with DARKROOM_UPSCALER, or none."
        return
    yield "upscaler", True, _upscaling(resolver), ""
    try:
        family = families.load(model, data, device=device, resolver=resolver)
    except (Unfit, OSError, ValueError) as error:
        yield "model", False, f"{model} does not load: {error}", "Install again: pip install 'darkroom-bot[all]'."
        return
    yield from _lines(family, calibrate(family, data / "calibration.json", again=again))


def looked(folder: Path) -> Iterator[Line]:
    """Load the picture check in this folder and try it once; labels and threshold come from the environment."""
    try:
        wanted = checking(folder)
        assert wanted is not None, "a folder is named"
        check = PictureCheck.load(wanted.folder, wanted.labels, wanted.threshold, best())
    except (BadSetting, Unfit) as error:
        yield "check", False, str(error), "Name another folder with DARKROOM_CHECK, or none."
        return
    yield "check", True, f"{check.name} flags {', '.join(check.labels)} from {wanted.threshold:g} on", ""


def _upscaling(resolver: SuperResolver | None) -> str:
    if resolver is None:
        return "none is installed: pictures are upscaled by Lanczos, which adds no detail"
    ms = resolver.measure() * 0.256**2
    return f"{resolver.name} ×{resolver.scale}, {ms:.0f} ms for a picture of 256 × 256 pixels"


def _lines(family: Family, found: Calibration) -> Iterator[Line]:
    timed = ", ".join(f"{dtype} {ms:.1f} ms" for dtype, ms in found.dtype_ms.items())
    yield "dtype", True, f"{found.dtype} (two rows: {timed})", ""
    grid = found.steps * 8 * found.row_ms / 1000
    says = f"{found.row_ms * 8:.1f} ms a step of a grid of four, {found.steps} steps of {found.sampler} in {grid:.0f} s"
    yield "speed", True, f"{family.name}: {says}", AGAIN if found.steps < 1000 else ""
