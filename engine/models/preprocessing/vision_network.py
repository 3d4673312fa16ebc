"""Opens a network of transformers that reads pictures, with its image processor, from an operator's folder.

Only safetensors beside their own configuration are opened; no code and no other weights that a configuration names.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from engine.contract.rejection import JobRejected
from engine.models.library_logging import silence_libraries

MAX_CONFIG_BYTES = 256 * 1024
CONFIG_FILE = "config.json"


class VisionNetwork(NamedTuple):
    """A network in float32 that does not train, and the image processor that was saved with it."""

    model: Any
    processor: Any

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))


def load_vision_network(
    folder: Path, class_name: str, noun: str, device: torch.device, model_types: Collection[str] = ()
) -> VisionNetwork:
    """Load a folder as this class of transformers. `noun` names it in sentences. Raises `JobRejected`.

    `model_types`: the kinds that are opened, as the configuration names them; none: all that the class knows.
    """
    config = _read_config(folder, noun)
    if model_types and config.get("model_type") not in model_types:
        raise reject_network(noun, f"is none of these kinds: {', '.join(model_types)}")
    _refuse_other_files(folder, config, noun)
    try:
        with silence_libraries():
            return _open_network(folder, class_name, device)
    except Exception as error:  # untrusted files, many classes: any error is possible
        raise reject_network(noun, "is none that transformers can open") from error


def reject_network(noun: str, reason: str) -> JobRejected:
    return JobRejected(f"The {noun} of this worker {reason}.", "worker")


def _open_network(folder: Path, class_name: str, device: torch.device) -> VisionNetwork:
    import transformers

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    processor = cast(Any, transformers.AutoImageProcessor).from_pretrained(str(folder), **options)
    model = getattr(transformers, class_name).from_pretrained(
        str(folder), use_safetensors=True, dtype=torch.float32, **options
    )
    return VisionNetwork(model.eval().requires_grad_(False).to(device), processor)


def _read_config(folder: Path, noun: str) -> dict[str, Any]:
    try:
        path = folder / CONFIG_FILE
        config: object = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise reject_network(noun, f"has no {CONFIG_FILE} that can be read") from error
    if not isinstance(config, dict):
        raise reject_network(noun, f"has no {CONFIG_FILE} that can be read")
    return cast(dict[str, Any], config)


def _refuse_other_files(folder: Path, config: dict[str, Any], noun: str) -> None:
    """Refuse a configuration that names weights besides the folder's own. Raises `JobRejected`."""
    backbone = config.get("backbone_config")
    for entries in (config, cast(dict[str, Any], backbone) if isinstance(backbone, dict) else {}):
        if entries.get("backbone") or entries.get("use_timm_backbone") or "auto_map" in entries:
            raise reject_network(noun, "names weights or code besides its own")
    if not any(folder.glob("*.safetensors")):
        raise reject_network(noun, "has no weights in safetensors")
