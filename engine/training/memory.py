"""Estimates the memory of a training before anything is loaded, from the headers of the weight files.

Knows sizes only. The figures are for a processor, rounded up from measurements (docs/training.md).
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = 0.8e9  # bytes: torch, diffusers and transformers without any model
FULL = 36  # bytes a parameter: weights, gradient, average, two moments in fp32; a checkpoint writes copies of four
FROZEN = 6  # fp32, and the copy in half precision that autocast keeps
ADAPTED = 36
KEPT = 40  # values that a block keeps for its gradient, for each output value
MAX_HEADER = 100 << 20
MAX_SIZE = 1 << 40
A_PICTURE = 8  # bytes for each pixel of a picture in memory: picture, mask, and copies of both for stacking
MEASURED = 40  # the same for a held-out picture: also as floats, and as the network's output
SMALLER = "a smaller --batch"


@dataclass(frozen=True)
class Need:
    """Bytes by purpose; `mend` is advice that reduces them."""

    weights: float
    activations: float
    mend: str
    batch: int
    what: str = "weights and optimizer"

    @property
    def total(self) -> float:
        return PROGRAM + self.weights + self.activations


def of_diffusion(folder: Path, batch: int) -> Need:
    """Estimate the training of a whole network. Raises ValueError if the folder has no network."""
    weights = FULL * parameters(folder / "unet") + _others(folder)
    mend = f"{SMALLER if batch > 1 else 'a smaller model'}, or `darkroom train lora`, which leaves the network as it is"
    return Need(weights, activations(_config(folder / "unet"), batch), mend, batch)


def of_lora(folder: Path, batch: int, rank: int, side: int | None = None) -> Need:
    """Estimate the training of a LoRA of `rank` on a frozen network; `side` of the pictures in pixels."""
    config = _config(folder / "unet")
    factor = 2 ** (len(_config(folder / "vae", places=False)["block_out_channels"]) - 1)
    added = 16 * 4 * 2 * rank * max(config["block_out_channels"])  # at most sixteen blocks of attention
    weights = FROZEN * parameters(folder / "unet") + ADAPTED * added + _others(folder)
    mend = "a smaller --size" if batch == 1 else f"{SMALLER} or a smaller --size"
    return Need(weights, activations(config, batch, side and side // factor), mend, batch)


def of_pixels(parameters: int, each: float, batch: int, seen: float, held_out: float = 0.0, mend: str = "") -> Need:
    """Estimate training on `seen` and `held_out` pixels in memory; each picture of a batch keeps `each` bytes."""
    weights = FULL * parameters + A_PICTURE * seen + MEASURED * held_out
    return Need(weights, each * batch, mend or SMALLER, batch, "weights, optimizer and pictures")


def check(need: Need) -> None:
    """Raise ValueError, one sentence with the numbers, if the training cannot fit."""
    free = available()
    if need.total > free:
        parts = f"{_gb(need.weights)} for {need.what}, {_gb(need.activations)} for a batch of {need.batch}"
        raise ValueError(
            f"This training needs about {_gb(need.total)} of memory ({parts}), and {_gb(free)} are free: "
            f"try {need.mend}."
        )


def activations(config: dict[str, Any], batch: int, side: int | None = None) -> float:
    """Return the bytes that a batch keeps for the gradient; `side` of the latents, by default the network's."""
    widths, layers = config["block_out_channels"], config.get("layers_per_block", 2)
    layers = layers if isinstance(layers, int) else max(layers)
    places = side or config["sample_size"]
    total = 0.0
    for level, width in enumerate(widths):
        area = math.ceil(places / 2**level) ** 2
        deep = 2 * layers + 1 + 2 * (level == len(widths) - 1)
        total += deep * width * area * KEPT * 2
    return total * batch


def parameters(folder: Path) -> int:
    """Count the numbers in a part's safetensors files from their headers. Raises ValueError."""
    files = [path for path in sorted(folder.glob("*.safetensors")) if ".fp16." not in path.name]
    files = files or sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no weights in safetensors.")
    return sum(math.prod(shape) for path in files for shape in _shapes(path))


def available() -> float:
    """Return the free bytes: what Linux counts as available, limited by the container's own limit."""
    lines = _lines(Path("/proc/meminfo"))
    said = [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    free = said[0] if said else float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    most, used = (_lines(Path(f"/sys/fs/cgroup/memory.{name}")) for name in ("max", "current"))
    return min(free, float(most[0]) - float(used[0])) if most and used and most[0].isdigit() else free


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # another system, or no container
        return []


def _others(folder: Path) -> float:
    return sum(4.0 * parameters(folder / part) for part in ("vae", "text_encoder") if (folder / part).is_dir())


def _shapes(path: Path) -> list[list[int]]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER:
                raise ValueError
            header = json.loads(file.read(length))
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        if not all(_sizes(shape, empty=True) for shape in shapes):
            raise ValueError
        return shapes
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path} is no safetensors file.") from None


def _config(folder: Path, *, places: bool = True) -> dict[str, Any]:
    """Read a part's configuration and check the sizes that this module uses. Raises ValueError."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{folder} has no config.json that can be read.") from None
    layers = config.get("layers_per_block", 2) if isinstance(config, dict) else None
    if not (
        isinstance(config, dict)
        and _sizes(config.get("block_out_channels"))
        and _sizes(layers if isinstance(layers, list) else [layers])
        and (_sizes([config.get("sample_size")]) or not places)
    ):
        raise ValueError(f"{folder} has a config.json that does not say how large its network is.")
    return config


def _sizes(found: object, *, empty: bool = False) -> bool:
    """Check for whole numbers of at least 1. With `empty`, an empty list and zeros count too: a tensor's shape."""
    if not isinstance(found, list) or not (found or empty):
        return False
    return all(type(one) is int and 1 - empty <= one <= MAX_SIZE for one in found)


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
