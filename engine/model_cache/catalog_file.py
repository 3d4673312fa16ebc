"""Model catalog file: what a worker knows of its models before it loads them, so that a start loads only the first.

An entry holds for one set of weights, one device and one program version, like a calibration; others are measured
again. Opens no model.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import diffusers
import msgspec
import torch
from msgspec import Meta, Struct

from engine.calibration.calibration import Calibration, read_device_name
from engine.contract import VERSION, ModelProfile, decode_json
from engine.process.system import write_atomically

log = logging.getLogger(__name__)

FILE_NAME = "offered.json"
MAX_ENTRIES = 1024  # models in the file, those of other devices and versions included
FORMAT_VERSION = 3  # raise it when entries would now come out differently, such as a large model's format


class CalibratedModel(Struct, frozen=True, forbid_unknown_fields=True):
    """A catalog entry. `size`: bytes that the model takes, by its files."""

    model_profile: ModelProfile
    calibration: Calibration
    size: Annotated[int, Meta(ge=0)]


def make_key(name: str, fingerprint: str, device: torch.device, upscaler: str, build: str, added: str = "") -> str:
    """Return the key of an entry. `fingerprint`: of the model's files; `upscaler`, `added`: fingerprints of those.

    Added files (LoRAs, textual inversions …) are part of it, because which of them fit is known only with the model in
    memory.
    """
    device_part = f"{read_device_name(device)}, {torch.get_num_threads()} threads"
    version_part = (
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, {build}, contract {VERSION}, form "
        f"{FORMAT_VERSION}"
    )
    return f"{device_part} | {version_part} | {name} {fingerprint} {upscaler} {added}".rstrip()


def read_catalog(data: Path) -> dict[str, CalibratedModel]:
    """Return all entries; none where the file is missing or damaged."""
    try:
        return decode_json((data / FILE_NAME).read_bytes(), dict[str, CalibratedModel])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.warning("%s cannot be read, so every model is loaded and measured: %s", FILE_NAME, error)
        return {}


def write_entries(data: Path, entries: dict[str, CalibratedModel]) -> None:
    """Write these entries, and the newest older ones."""
    older = {key: entry for key, entry in read_catalog(data).items() if key not in entries}
    merged = dict([*(older | entries).items()][-MAX_ENTRIES:])
    try:
        write_atomically(data / FILE_NAME, msgspec.json.format(msgspec.json.encode(merged)))
    except OSError as error:
        log.warning("%s cannot be written, so the next start loads every model: %s", FILE_NAME, error)
