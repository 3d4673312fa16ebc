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
from PIL import Image, ImageDraw

from benchmarks.fixtures.small_controls import (
    ADAPTER_FILE,
    ENCODER_FOLDER,
    AdapterWidths,
    build_image_encoder,
    list_adapter_shapes,
)

POOL_SIZE = 4_194_301  # random values that all tensors reuse; a prime number, so no two rows of a matrix are equal
STAMP_FILE = "random-weights.json"
BYTES_PER_VALUE = 2  # of a bfloat16
EMBEDDING_SCALE = 0.02  # scale of CLIP's token and position embeddings


def ensure_model_folder(folder: Path, build_pipeline: Callable[[], Any]) -> Path:
    """Write the pipeline of `build_pipeline` into `folder`, unless a complete folder of the same pipeline is there."""
    with torch.device("meta"):
        pipeline = build_pipeline()
    digest = _hash_pipeline(pipeline)
    if _read_stamp(folder) == digest:
        return folder
    temp_folder = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temp_folder, ignore_errors=True)
    try:
        _write_folder(temp_folder, pipeline)
        (temp_folder / STAMP_FILE).write_text(json.dumps({"digest": digest}))
        shutil.rmtree(folder, ignore_errors=True)
        temp_folder.replace(folder)
    finally:
        shutil.rmtree(temp_folder, ignore_errors=True)
    return folder


def _hash_pipeline(pipeline: Any) -> str:
    """Hash all parts' configurations: a new version of this module or of diffusers rebuilds the folder."""
    parts = {name: _part_config_json(part) for name, part in sorted(pipeline.components.items())}
    return hashlib.sha256(json.dumps([type(pipeline).__name__, parts]).encode()).hexdigest()


def _part_config_json(part: Any) -> str:
    config = getattr(part, "config", None)
    if config is None:
        return type(part).__name__
    return str(part.to_json_string() if isinstance(config, Mapping) else config.to_json_string())


def _read_stamp(folder: Path) -> str:
    try:
        return str(json.loads((folder / STAMP_FILE).read_text())["digest"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _write_folder(folder: Path, pipeline: Any) -> None:
    pipeline.save_config(folder)
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            write_network(part, folder / name)
        elif part is not None:
            part.save_pretrained(folder / name)


def write_network(network: Any, folder: Path) -> None:
    """Write a network of the meta device: its configuration, and one file of random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network.config, Mapping):  # a model of diffusers
        network.save_config(folder)
        file_name = "diffusion_pytorch_model.safetensors"
    else:
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(folder)
        file_name = "model.safetensors"
    tied_weights = getattr(network, "_tied_weights_keys", None) or ()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items() if name not in tied_weights}
    write_weights(shapes, folder / file_name)


def write_weights(shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Write a safetensors file: the header's length, the header, the values."""
    header = dict[str, Any](__metadata__={"format": "pt"})
    end_offset = 0
    for name, shape in shapes.items():
        start_offset = end_offset
        end_offset = end_offset + BYTES_PER_VALUE * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start_offset, end_offset]}
    header_bytes = json.dumps(header).encode()
    header_bytes += b" " * (-len(header_bytes) % 8)
    pool = torch.randn(POOL_SIZE, generator=torch.Generator().manual_seed(0))
    with path.open("wb") as file:
        file.write(len(header_bytes).to_bytes(8, "little") + header_bytes)
        offset = 0
        for name, shape in shapes.items():
            offset = _write_tensor(file, pool, offset, name, shape)


def _write_tensor(file: BinaryIO, pool: torch.Tensor, offset: int, name: str, shape: tuple[int, ...]) -> int:
    """Write one tensor: norms are 1, biases 0, matrices keep their input's scale.

    Returns the next offset in the pool.
    """
    remaining = torch.Size(shape).numel()
    if len(shape) < 2:
        file.write(_to_bfloat16_bytes(torch.full(shape, float(name.endswith("weight")))))
        return offset
    scale = (
        EMBEDDING_SCALE if "token_embedding" in name or "position_embedding" in name else (remaining / shape[0]) ** -0.5
    )
    while remaining:
        values = pool[offset : offset + remaining]
        file.write(_to_bfloat16_bytes(values * scale))
        remaining -= len(values)
        offset = (offset + len(values)) % POOL_SIZE
    return offset


def _to_bfloat16_bytes(values: torch.Tensor) -> memoryview:
    return values.to(torch.bfloat16).view(torch.int16).numpy().data


# The published "plus" adapters have 16 tokens. Their image encoder is ViT-H; ViT-L encodes once, and takes a third.
REAL_WIDTHS = AdapterWidths(encoder=1024, projection=768, hidden=768, tokens=16)
PICTURE_SIDE = 512
SMALL_NETWORK = 10_000_000  # parameters: for a smaller network the adapter is small, too
SCALE = 0.6


def ensure_adapter(folder: Path, unet: Any) -> Path:
    """Write an adapter for a U-Net into `folder`, unless one is there."""
    encoder_folder = folder / ENCODER_FOLDER
    if not (encoder_folder / "model.safetensors").exists():
        is_small = sum(each.numel() for each in unet.parameters()) < SMALL_NETWORK
        widths = AdapterWidths() if is_small else REAL_WIDTHS
        with torch.device("meta"):
            encoder = build_image_encoder(*((32, 8, 3, 4) if is_small else (224, 14, 24, 16)), widths)
        encoder_folder.mkdir(parents=True, exist_ok=True)
        write_weights(dict(list_adapter_shapes(unet, is_plus=True, widths=widths)), folder / ADAPTER_FILE)
        write_network(encoder, encoder_folder)
    return folder


def save_picture(path: Path) -> Path:
    """Save the picture that both sides refer to."""
    picture = Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE), "teal")
    ImageDraw.Draw(picture).ellipse((90, 60, 420, 390), fill="orange")
    picture.save(path)
    return path
