"""Checkpoints that survive a kill at any time, and the export in the diffusers layout.

It is the same for every kind of network. A checkpoint is one safetensors file with the position as JSON in its header.
It is not a pickle, so a stranger's file cannot run code.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

MAX_SHARD_SIZE = "40MB"  # no file of the repository is larger than 45 MB


def save(
    path: Path, tensors: Mapping[str, Tensor], position: Mapping[str, Any], metadata: Mapping[str, str] = {}
) -> None:
    """Write beside the target, flush to disk, then rename: a reader sees the old file or the new one.

    The position and `metadata` go into the file's metadata. Raises OSError, also for a full disk; the old file is then
    still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temp_path = path.with_name(f"{path.name}.fresh")
    temp_path.unlink(missing_ok=True)
    try:
        with translate_write_errors(path):
            contents = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contents, temp_path, {"position": json.dumps(position), **metadata})
        _sync_to_disk(temp_path)
        os.replace(temp_path, path)
    except OSError:
        temp_path.unlink(missing_ok=True)
        raise
    _sync_to_disk(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file atomically: a reader sees the old text or the new one."""
    temp_path = path.with_name(f"{path.name}.fresh")
    temp_path.unlink(missing_ok=True)
    temp_path.write_text(text, "utf-8")
    _sync_to_disk(temp_path)
    os.replace(temp_path, path)


def make_readable(folder: Path) -> None:
    """Give weights the permissions of other new files; safetensors writes them for the owner only."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o666 & ~mask)


@contextmanager
def translate_write_errors(target: Path) -> Generator[None]:
    """Turn safetensors' error about a full or read-only disk into an OSError."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{target} could not be written: {error}") from error


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and position. Raises FileNotFoundError, or safetensors' error if the file is incomplete."""
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path.name}")
    with cast(Any, safe_open)(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        return tensors, json.loads(file.metadata()["position"])


def read_position(path: Path) -> dict[str, Any]:
    """Read only the position, no tensors. Raises ValueError if the file is not a complete checkpoint."""
    try:
        with cast(Any, safe_open)(path, framework="pt") as file:
            content = json.loads(file.metadata()["position"])
        if isinstance(content, dict):
            return cast(dict[str, Any], content)
        raise TypeError
    except (SafetensorError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a complete checkpoint: start over with --fresh.") from error


def export_network(network: UNet2DConditionModel, folder: Path) -> None:
    """Write the network in fp16, sharded, for `UNet2DConditionModel.from_pretrained`."""
    half_network = copy.deepcopy(network)
    torch.nn.Module.half(half_network)
    half_network.save_pretrained(folder, safe_serialization=True, max_shard_size=MAX_SHARD_SIZE)
    config = folder / "config.json"
    public_config = {name: value for name, value in json.loads(config.read_text()).items() if name != "_name_or_path"}
    config.write_text(json.dumps(public_config, indent=2, sort_keys=True) + "\n")  # the original path is private


def _sync_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_common_part(tensor: Tensor, target: Tensor) -> None:
    """Copy the channels that both have, the first ones, into `target`."""
    corner = tuple(slice(0, min(sizes)) for sizes in zip(tensor.shape, target.shape, strict=True))
    target[corner].copy_(tensor[corner])
