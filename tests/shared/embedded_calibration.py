"""One calibration for all processes of a test run: these tests compare bytes, not speeds."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec
import pytest

CALIBRATION_TIMEOUT = 240.0
CLEAN_ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "DISCORD_"))
}


def measure_once(path_factory: pytest.TempPathFactory) -> Path:
    """Returns the calibration file, measured by pytest's first process. Copy it into a process's data folder."""
    from engine.calibration.calibration import calibrate
    from engine.models.families.embedded import load_embedded
    from engine.upscaling.super_resolver import SuperResolver

    folder = path_factory.getbasetemp()
    path = (folder.parent if folder.name.startswith("popen-") else folder) / "calibration.json"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            calibrate(load_embedded(resolver=SuperResolver.load(None)), path)
    return path


def read_row_ms(path: Path) -> float:
    """Reads the milliseconds per row in a forward of the embedded model on this machine."""
    (calibration,) = msgspec.json.decode(path.read_bytes()).values()
    return calibration["row_ms"]
