"""What a worker knows of its models before they are loaded: kept in a file, so that a start needs none in memory.

Bound to weights, device and program as a calibration is; what does not fit any more is measured anew. Opens no model.
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
MOST_KEPT = 1024  # models in the file, also of other devices or versions
FORM = 2  # raise it where what is kept would be found otherwise now, as the number format of a large model


class Offered(Struct, frozen=True, forbid_unknown_fields=True):
    """`size`: bytes that the model takes, by its files."""

    warm: Warm
    found: Calibration
    size: Annotated[int, Meta(ge=0)]


def identity(name: str, fingerprint: str, device: torch.device, upscaler: str, build: str, loras: str = "") -> str:
    """`fingerprint` is of the model's files, `upscaler` that of what enlarges its pictures, `loras` that of the LoRAs.

    Which of them fit is learnt with the model in memory.
    """
    where = f"{device_name(device)}, {torch.get_num_threads()} threads"
    made = f"torch {torch.__version__}, diffusers {diffusers.__version__}, {build}, contract {VERSION}, form {FORM}"
    return f"{where} | {made} | {name} {fingerprint} {upscaler} {loras}".rstrip()


def read(data: Path) -> dict[str, Offered]:
    """Everything that is kept; nothing where the file is missing or spoilt."""
    try:
        return msgspec.json.decode((data / FILE).read_bytes(), type=dict[str, Offered])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.warning("%s cannot be read, so the models are loaded to see what they are: %s", FILE, error)
        return {}


def keep(data: Path, found: dict[str, Offered]) -> None:
    """These, and the newest of what was kept before."""
    older = {key: one for key, one in read(data).items() if key not in found}
    kept = dict([*(older | found).items()][-MOST_KEPT:])
    try:
        write_whole(data / FILE, msgspec.json.format(msgspec.json.encode(kept)))
    except OSError as error:
        log.warning("%s cannot be written, so the next start loads every model: %s", FILE, error)
