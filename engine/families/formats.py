"""In which number format a model is loaded: decided by its files' headers and the device, before anything is loaded.

A large model is in memory once, whole, in one format. A small one is float32, and its network has a copy in half the
bits where that is faster. Loads no weights.
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

LARGE = 100_000_000  # parameters: a model with a larger part is in memory once
HUGE = 1_000_000_000  # parameters: what is larger is never made larger than its files are
HALVES: tuple[Dtype, ...] = ("bfloat16", "float16")


@dataclass(frozen=True)
class Formats:
    """The number format of each part, by its name.

    `held`: that of a large model; None: the model is small. `copies`: whether a float32 network has a copy besides.
    """

    of: Mapping[str, Dtype]
    held: Dtype | None = None
    copies: bool = True

    def size(self, found: Sequence[Part]) -> int:
        """Bytes that a model of these parts takes, with the copy of its network, once that is used."""
        least = sum(part.parameters * TORCH[self.of[part.name]].itemsize for part in found)
        return least + (sum(2 * part.parameters for part in found if self._has_copy(part)) if self.copies else 0)

    def _has_copy(self, part: Part) -> bool:
        return part.name in NETWORKS and self.of[part.name] == "float32"


@dataclass(frozen=True)
class Choice:
    """Chooses for one device; a part of more than `large` parameters makes a model a large one."""

    device: torch.device
    large: int = LARGE

    def formats(self, pipeline: str, found: Sequence[Part]) -> Formats:
        """For a pipeline's class and parts; an empty name is that of one that has a family."""
        largest = max(found, key=lambda part: part.parameters, default=None)
        if largest is None or largest.parameters <= self.large:
            return Formats({part.name: "float32" for part in found})
        held = preferred_dtype(self.device, largest.stored)
        if held == "float32" and largest.parameters > HUGE:
            held = largest.stored
        return self.formats_in(held, pipeline, found)

    def formats_in(self, held: Dtype, pipeline: str, found: Sequence[Part]) -> Formats:
        """A large model in this format. Without a family of ours only its large parts: its pipeline does the rest."""
        if not pipeline or has_family(pipeline):
            return Formats({part.name: held for part in found}, held, copies=False)
        return Formats({part.name: held if part.parameters > self.large else "float32" for part in found}, held)

    def sizes(self, pipeline: str, found: Sequence[Part]) -> dict[Dtype, int]:
        """Bytes in each format that it may be opened in; nothing where it is small, and has its copies."""
        if self.formats(pipeline, found).copies:
            return {}
        return {dtype: self.formats_in(dtype, pipeline, found).size(found) for dtype in TORCH}


def stored_formats(found: Sequence[Part]) -> Formats:
    """For training: float32, but for what nobody has the memory for."""
    return Formats({part.name: part.stored if part.parameters > HUGE else "float32" for part in found})


def preferred_dtype(device: torch.device, stored: Dtype) -> Dtype:
    """What a large model runs in: half the bits where the device computes with them, else float32.

    On a card the files' own half format, if the card has it. On a processor that is bfloat16, whatever the files have.
    """
    if device.type == "cuda":
        able: tuple[Dtype, ...] = HALVES if torch.cuda.is_bf16_supported() else ("float16",)
        return stored if stored in able else able[0]
    return "bfloat16" if has_bfloat16() else "float32"


def has_bfloat16() -> bool:
    """Whether this processor has instructions for it."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
