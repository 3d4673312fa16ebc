"""Writes a pipeline from the meta device as a diffusers folder, with random weights in bfloat16.

Speed and memory do not depend on trained weights. It writes tensor by tensor, so a model takes no more memory than its
largest tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

POOL = 4_194_301  # random values that all tensors reuse; a prime number, so no two rows of a matrix are equal
STAMP = "random-weights.json"
BYTES = 2  # of a bfloat16
EMBEDDED = 0.02  # scale of CLIP's token and position embeddings


def provide_folder(folder: Path, build: Callable[[], Any]) -> Path:
    """Write the pipeline of `build` into `folder`, unless a complete folder of the same pipeline is there."""
    with torch.device("meta"):
        pipeline = build()
    digest = _digest(pipeline)
    if _stamp(folder) == digest:
        return folder
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write_folder(partial, pipeline)
        (partial / STAMP).write_text(json.dumps({"digest": digest}))
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _digest(pipeline: Any) -> str:
    """Hash all parts' configurations: a new version of this module or of diffusers rebuilds the folder."""
    parts = {name: _configuration(part) for name, part in sorted(pipeline.components.items())}
    return hashlib.sha256(json.dumps([type(pipeline).__name__, parts]).encode()).hexdigest()


def _configuration(part: Any) -> str:
    config = getattr(part, "config", None)
    if config is None:
        return type(part).__name__
    return str(part.to_json_string() if isinstance(config, Mapping) else config.to_json_string())


def _stamp(folder: Path) -> str:
    try:
        return str(json.loads((folder / STAMP).read_text())["digest"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _write_folder(folder: Path, pipeline: Any) -> None:
    pipeline.save_config(folder)
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            _write_network(part, folder / name)
        elif part is not None:
            part.save_pretrained(folder / name)


def _write_network(network: Any, folder: Path) -> None:
    """Write a part's configuration and one file of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network.config, Mapping):  # a model of diffusers
        network.save_config(folder)
        file = "diffusion_pytorch_model.safetensors"
    else:
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(folder)
        file = "model.safetensors"
    tied = getattr(network, "_tied_weights_keys", None) or ()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items() if name not in tied}
    _write_weights(shapes, folder / file)


def _write_weights(shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Write a safetensors file: the header's length, the header, the values."""
    header, end = dict[str, Any](__metadata__={"format": "pt"}), 0
    for name, shape in shapes.items():
        begin, end = end, end + BYTES * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0))
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        offset = 0
        for name, shape in shapes.items():
            offset = _write_values(file, pool, offset, name, shape)


def _write_values(file: BinaryIO, pool: torch.Tensor, offset: int, name: str, shape: tuple[int, ...]) -> int:
    """Write one tensor: norms are 1, biases 0, matrices keep their input's scale.

    Returns the next offset in the pool.
    """
    count = torch.Size(shape).numel()
    if len(shape) < 2:
        file.write(_as_bytes(torch.full(shape, float(name.endswith("weight")))))
        return offset
    scale = EMBEDDED if "token_embedding" in name or "position_embedding" in name else (count / shape[0]) ** -0.5
    while count:
        values = pool[offset : offset + count]
        file.write(_as_bytes(values * scale))
        count -= len(values)
        offset = (offset + len(values)) % POOL
    return offset


def _as_bytes(values: torch.Tensor) -> memoryview:
    return values.to(torch.bfloat16).view(torch.int16).numpy().data
