"""Estimates the memory of a training before anything is loaded, from the headers of the weight files.

It works on sizes only. The figures are for a processor, rounded up from measurements (docs/training.md).
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

PROCESS_BYTES = 0.8e9  # bytes: torch, diffusers and transformers without any model
# bytes a parameter: weights, gradient, average, two moments in fp32; a checkpoint writes copies of four
TRAINED_PARAMETER_BYTES = 36
FROZEN_PARAMETER_BYTES = 6  # fp32, and the copy in half precision that autocast keeps
LORA_PARAMETER_BYTES = 36
ACTIVATIONS_PER_OUTPUT = 40  # values that a block keeps for its gradient, for each output value
MAX_HEADER_BYTES = 100 << 20
MAX_DIMENSION = 1 << 40
PICTURE_PIXEL_BYTES = 8  # bytes for each pixel of a picture in memory: picture, mask, and copies of both for stacking
HELD_OUT_PIXEL_BYTES = 40  # the same for a held-out picture: also as floats, and as the network's output
SMALLER_BATCH = "a smaller --batch"


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by purpose; `remedy` is advice that reduces them."""

    weights: float
    activations: float
    remedy: str
    batch: int
    weights_label: str = "weights and optimizer"

    @property
    def total(self) -> float:
        return PROCESS_BYTES + self.weights + self.activations


def estimate_diffusion(folder: Path, batch: int, config: dict[str, Any] | None = None) -> MemoryEstimate:
    """Estimate the training of a whole network, whose configuration may be another than the folder's.

    Raises ValueError if the folder has no network.
    """
    weights = TRAINED_PARAMETER_BYTES * count_parameters(folder / "unet") + _frozen_parts_bytes(folder)
    remedy = (
        f"{SMALLER_BATCH if batch > 1 else 'a smaller model'}, or `darkroom train lora`, which leaves the network "
        "as it is"
    )
    return MemoryEstimate(weights, activation_bytes(config or read_config(folder / "unet"), batch), remedy, batch)


def estimate_lora(
    folder: Path, batch: int, rank: int, side: int | None = None, *, has_size_option: bool = True
) -> MemoryEstimate:
    """Estimate the training of a LoRA of `rank` on a frozen network; `side` of the pictures in pixels."""
    config = read_config(folder / "unet")
    vae_factor = 2 ** (len(read_config(folder / "vae", needs_sample_size=False)["block_out_channels"]) - 1)
    lora_parameters = 16 * 4 * 2 * rank * max(config["block_out_channels"])  # at most sixteen blocks of attention
    weights = FROZEN_PARAMETER_BYTES * count_parameters(folder / "unet") + LORA_PARAMETER_BYTES * lora_parameters
    smaller_size = "a smaller --size" if has_size_option else "a smaller --rank"
    remedy = f"{SMALLER_BATCH} or {smaller_size}" if batch > 1 else smaller_size
    weights += _frozen_parts_bytes(folder)
    return MemoryEstimate(weights, activation_bytes(config, batch, side and side // vae_factor), remedy, batch)


def check_pixel_network(
    parameter_count: int,
    bytes_per_picture: float,
    batch: int,
    train_pixels: float,
    held_out_pixels: float = 0.0,
    remedy: str = SMALLER_BATCH,
    frozen_parameter_count: int = 0,
) -> None:
    """Raise ValueError if training on `train_pixels` and `held_out_pixels` in memory cannot fit.

    Each picture of a batch keeps `bytes_per_picture` for its gradient. `frozen_parameter_count` is of other networks.
    """
    weights = TRAINED_PARAMETER_BYTES * parameter_count + FROZEN_PARAMETER_BYTES * frozen_parameter_count
    weights += PICTURE_PIXEL_BYTES * train_pixels + HELD_OUT_PIXEL_BYTES * held_out_pixels
    label = "weights, optimizer and pictures"
    check_fits(MemoryEstimate(weights, bytes_per_picture * batch, remedy, batch, label))


def check_fits(estimate: MemoryEstimate) -> None:
    """Raise ValueError, one sentence with the numbers, if the training cannot fit."""
    free = free_bytes()
    if estimate.total > free:
        needed, weights, activations, free_text = map(
            _format_gb, (estimate.total, estimate.weights, estimate.activations, free)
        )
        raise ValueError(
            f"This training needs about {needed} of memory ({weights} for {estimate.weights_label}, {activations} for "
            f"a batch of {estimate.batch}), and {free_text} are free: try {estimate.remedy}."
        )


def activation_bytes(config: dict[str, Any], batch: int, side: int | None = None) -> float:
    """Return the bytes that a batch keeps for the gradient; `side` of the latents, by default the network's."""
    widths = config["block_out_channels"]
    layers = config.get("layers_per_block", 2)
    layers = layers if isinstance(layers, int) else max(layers)
    latent_side = side or config["sample_size"]
    total = 0.0
    for level, width in enumerate(widths):
        area = math.ceil(latent_side / 2**level) ** 2
        layer_count = 2 * layers + 1 + 2 * (level == len(widths) - 1)
        total += layer_count * width * area * ACTIVATIONS_PER_OUTPUT * 2
    return total * batch


def count_parameters(folder: Path) -> int:
    """Count the numbers in a part's safetensors files from their headers. Raises ValueError."""
    files = [path for path in sorted(folder.glob("*.safetensors")) if ".fp16." not in path.name]
    files = files or sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no weights in safetensors.")
    return sum(math.prod(shape) for path in files for shape in _read_shapes(path))


def free_bytes() -> float:
    """Return the free bytes: what Linux counts as available, limited by the container's own limit."""
    lines = _read_lines(Path("/proc/meminfo"))
    available = [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    free = available[0] if available else float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    limit, usage = (_read_lines(Path(f"/sys/fs/cgroup/memory.{name}")) for name in ("max", "current"))
    return min(free, float(limit[0]) - float(usage[0])) if limit and usage and limit[0].isdigit() else free


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # another system, or no container
        return []


def _frozen_parts_bytes(folder: Path) -> float:
    return sum(4.0 * count_parameters(folder / part) for part in ("vae", "text_encoder") if (folder / part).is_dir())


def _read_shapes(path: Path) -> list[list[int]]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError
            header = json.loads(file.read(length))
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        if not all(_are_sizes(shape, allow_empty=True) for shape in shapes):
            raise ValueError
        return shapes
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path} is no safetensors file.") from None


def read_config(folder: Path, *, needs_sample_size: bool = True) -> dict[str, Any]:
    """Read a part's configuration and check the sizes that this module uses. Raises ValueError."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{folder} has no config.json that can be read.") from None
    values = cast(dict[str, Any], config) if isinstance(config, dict) else {}
    layers = values.get("layers_per_block", 2)
    if not (
        _are_sizes(values.get("block_out_channels"))
        and _are_sizes(cast(list[Any], layers) if isinstance(layers, list) else [layers])
        and (_are_sizes([values.get("sample_size")]) or not needs_sample_size)
    ):
        raise ValueError(f"{folder} has a config.json that does not say how large its network is.")
    return values


def _are_sizes(value: object, *, allow_empty: bool = False) -> bool:
    """Check for whole numbers of at least 1. With `allow_empty` an empty list and zeros count too, as in a shape."""
    if not isinstance(value, list) or not (value or allow_empty):
        return False
    sizes = cast(list[Any], value)
    return all(type(size) is int and 1 - allow_empty <= size <= MAX_DIMENSION for size in sizes)


def _format_gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
