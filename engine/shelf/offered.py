"""Model catalog file: what a worker knows of its models before they are loaded, so that a start loads only the first.

Entries are bound to weights, device and program versions, like calibrations; others are measured again. Opens no model.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import diffusers
import msgspec
import torch
from msgspec import Meta, Struct

from engine.calibration import Calibration, device_name
from engine.job import VERSION, Warm
from engine.whole_file import write_whole

log = logging.getLogger(__name__)

FILE = "offered.json"
MOST_KEPT = 1024  # models in the file, those of other devices and versions included
FORM = 2  # raise it when entries would now come out differently, such as a large model's format


class Offered(Struct, frozen=True, forbid_unknown_fields=True):
    """A catalog entry. `size`: bytes that the model takes, by its files."""

    warm: Warm
    found: Calibration
    size: Annotated[int, Meta(ge=0)]


def identity(name: str, fingerprint: str, device: torch.device, upscaler: str, build: str, loras: str = "") -> str:
    """Return the key of an entry. `fingerprint`: of the model's files; `upscaler`, `loras`: fingerprints of those.

    LoRAs are part of it, because which of them fit is known only with the model in memory.
    """
    where = f"{device_name(device)}, {torch.get_num_threads()} threads"
    made = f"torch {torch.__version__}, diffusers {diffusers.__version__}, {build}, contract {VERSION}, form {FORM}"
    return f"{where} | {made} | {name} {fingerprint} {upscaler} {loras}".rstrip()


def read(data: Path) -> dict[str, Offered]:
    """Return all entries; none where the file is missing or damaged."""
    try:
        return msgspec.json.decode((data / FILE).read_bytes(), type=dict[str, Offered])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.warning("%s cannot be read, so every model is loaded and measured: %s", FILE, error)
        return {}


def keep(data: Path, found: dict[str, Offered]) -> None:
    """Write these entries, and the newest older ones."""
    older = {key: one for key, one in read(data).items() if key not in found}
    kept = dict([*(older | found).items()][-MOST_KEPT:])
    try:
        write_whole(data / FILE, msgspec.json.format(msgspec.json.encode(kept)))
    except OSError as error:
        log.warning("%s cannot be written, so the next start loads every model: %s", FILE, error)
