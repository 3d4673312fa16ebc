"""Chooses a model's number formats by its files' headers and the device, before anything is loaded.

A large model is in memory once, in one format. A small one is float32, and its network has a copy in half the bits
where that is faster. Loads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from engine.families.family import TORCH
from engine.families.parts import Part
from engine.families.table import has_family
from engine.job import Dtype
from engine.strands.shell import NETWORKS

LARGE = 100_000_000  # parameters: a model with a larger part is held in one format
HUGE = 1_000_000_000  # parameters: a larger model never takes more bytes than its files
HALVES: tuple[Dtype, ...] = ("bfloat16", "float16")


@dataclass(frozen=True)
class Formats:
    """The number format of each part, by name.

    `held`: the format of a large model; None: the model is small. `copies`: whether a float32 network also has a copy.
    """

    of: Mapping[str, Dtype]
    held: Dtype | None = None
    copies: bool = True

    def size(self, found: Sequence[Part]) -> int:
        """Return the bytes of a model of these parts, its network's copy included."""
        least = sum(part.parameters * TORCH[self.of[part.name]].itemsize for part in found)
        return least + (sum(2 * part.parameters for part in found if self._has_copy(part)) if self.copies else 0)

    def _has_copy(self, part: Part) -> bool:
        return part.name in NETWORKS and self.of[part.name] == "float32"


@dataclass(frozen=True)
class Choice:
    """Chooses for one device. A part of more than `large` parameters makes a model large."""

    device: torch.device
    large: int = LARGE

    def formats(self, pipeline: str, found: Sequence[Part]) -> Formats:
        """Choose for a pipeline class and its parts. An empty class name counts as one with a family."""
        largest = max(found, key=lambda part: part.parameters, default=None)
        if largest is None or largest.parameters <= self.large:
            return Formats({part.name: "float32" for part in found})
        held = preferred_dtype(self.device, largest.stored)
        if held == "float32" and largest.parameters > HUGE:
            held = largest.stored
        return self.formats_in(held, pipeline, found)

    def formats_in(self, held: Dtype, pipeline: str, found: Sequence[Part]) -> Formats:
        """Return the formats of a large model held in `held`. Without a family of ours only its large parts are."""
        if not pipeline or has_family(pipeline):
            return Formats({part.name: held for part in found}, held, copies=False)
        return Formats({part.name: held if part.parameters > self.large else "float32" for part in found}, held)

    def sizes(self, pipeline: str, found: Sequence[Part]) -> dict[Dtype, int]:
        """Return the bytes in each format that the model may be loaded in; empty for a small model."""
        if self.formats(pipeline, found).copies:
            return {}
        return {dtype: self.formats_in(dtype, pipeline, found).size(found) for dtype in TORCH}


def stored_formats(found: Sequence[Part]) -> Formats:
    """Return formats for training: float32, except for parts too large for that."""
    return Formats({part.name: part.stored if part.parameters > HUGE else "float32" for part in found})


def preferred_dtype(device: torch.device, stored: Dtype) -> Dtype:
    """Return the format for a large model: half the bits where the device computes with them, else float32.

    On a GPU that is the files' half format, if the GPU supports it. On a processor it is bfloat16, whatever the files
    have.
    """
    if device.type == "cuda":
        able: tuple[Dtype, ...] = HALVES if torch.cuda.is_bf16_supported() else ("float16",)
        return stored if stored in able else able[0]
    return "bfloat16" if has_bfloat16() else "float32"


def has_bfloat16() -> bool:
    """Whether this processor has bfloat16 instructions."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
