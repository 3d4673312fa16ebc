"""Chooses a model's number formats by its files' headers and the device, before anything is loaded.

A large model, or a quantised one, is in memory once, in one format. A small one is float32, and its network has a copy
in half the bits where that is faster. Loads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from engine.contract import Dtype, Quantization
from engine.models.family import TORCH_DTYPES
from engine.models.files.pipeline_parts import Part
from engine.models.quantization.choice import PartQuantization
from engine.models.quantization.stored_quantization import count_matrix_bytes
from engine.models.registry import has_family
from engine.pipelines.network_call import NETWORK_NAMES, TEXT_ENCODER_PREFIX

CPU = torch.device("cpu")
LARGE_PARAMETERS = 100_000_000  # parameters: a model with a larger part is in memory in one format
HUGE_PARAMETERS = 1_000_000_000  # parameters: a larger model never takes more bytes than its files
FLOAT32_PARTS = ("large_decoder",)  # parts in float32 in any model
HALF_FORMATS: tuple[Dtype, ...] = ("bfloat16", "float16")


@dataclass(frozen=True)
class PartFormats:
    """The number format of each part, by name.

    `single_format`: the format of a large model; None: the model is small. `has_network_copy`: whether a float32
    network also has a copy. `quantization`: of matrices; the other weights of a part have its number format.
    """

    by_part: Mapping[str, Dtype]
    single_format: Dtype | None = None
    has_network_copy: bool = True
    quantization: PartQuantization = field(default_factory=PartQuantization)
    device: torch.device = CPU

    def count_bytes(self, parts: Sequence[Part]) -> int:
        """Return the bytes of a model of these parts, its network's copy included."""
        part_bytes = sum(self.count_part_bytes(part) for part in parts)
        return part_bytes + (
            sum(2 * part.parameters for part in parts if self._is_copied(part)) if self.has_network_copy else 0
        )

    def find_quantization(self, part: Part) -> Quantization:
        """Return how the part's matrices are stored."""
        return part.fixed_quantization or self.quantization.find_for(part.name)

    def count_part_bytes(self, part: Part) -> int:
        """Return the bytes of one part, without a copy."""
        itemsize = TORCH_DTYPES[self.by_part[part.name]].itemsize
        quantization = self.find_quantization(part)
        if quantization == "none":
            return itemsize * part.parameters
        if part.packed is not None and part.packed.quantization == quantization:
            return part.packed.bytes + itemsize * (part.parameters - part.packed.parameters)
        matrix_bytes = sum(count_matrix_bytes(each, quantization, self.device, itemsize) for each in part.matrices)
        return matrix_bytes + itemsize * (part.parameters - sum(each.parameters for each in part.matrices))

    def _is_copied(self, part: Part) -> bool:
        return part.name in NETWORK_NAMES and self.by_part[part.name] == "float32"


@dataclass(frozen=True)
class FormatChooser:
    """Chooses for one device. A part of more than `large_threshold` parameters makes a model large."""

    device: torch.device
    large_threshold: int = LARGE_PARAMETERS
    quantization: PartQuantization = field(default_factory=PartQuantization)

    def with_quantization(self, quantization: PartQuantization) -> FormatChooser:
        return replace(self, quantization=quantization)

    def with_stored(self, parts: Sequence[Part]) -> FormatChooser:
        """Return the chooser with the quantisation of parts that stay as their files store them."""
        networks: list[Quantization | None] = [part.fixed_quantization for part in parts if part.name in NETWORK_NAMES]
        texts = [part.fixed_quantization for part in parts if part.name.startswith(TEXT_ENCODER_PREFIX)]
        stored: list[Quantization] = [each for each in networks if each is not None]
        text: Quantization = "none" if texts and all(texts) else self.quantization.text
        return self.with_quantization(PartQuantization(stored[0] if stored else self.quantization.network, text))

    def is_large(self, parts: Sequence[Part]) -> bool:
        """Whether the model has a large part."""
        return any(part.parameters > self.large_threshold for part in parts)

    def choose_formats(self, class_name: str, parts: Sequence[Part]) -> PartFormats:
        """Choose for a pipeline class and its parts. An empty class name counts as one with a family."""
        largest = max(parts, key=lambda part: part.parameters, default=None)
        quantization = self.with_stored(parts).quantization
        if largest is None or not (self.is_large(parts) or quantization):
            return PartFormats({part.name: "float32" for part in parts})
        dtype = choose_single_format(self.device, largest.stored_dtype, prefers_bfloat16=bool(quantization))
        if dtype == "float32" and largest.parameters > HUGE_PARAMETERS:
            dtype = largest.stored_dtype
        return self.make_single_formats(dtype, class_name, parts)

    def make_single_formats(self, dtype: Dtype, class_name: str, parts: Sequence[Part]) -> PartFormats:
        """Return the formats of a large model in `dtype`. Without a family of ours only its large parts get it."""
        quantization = self.with_stored(parts).quantization
        if not class_name or has_family(class_name):
            formats: dict[str, Dtype] = {
                part.name: "float32" if part.name in FLOAT32_PARTS else dtype for part in parts
            }
            return PartFormats(formats, dtype, False, quantization, self.device)
        large_formats: dict[str, Dtype] = {
            part.name: dtype if part.parameters > self.large_threshold else "float32" for part in parts
        }
        return PartFormats(large_formats, dtype, not quantization, quantization, self.device)

    def estimate_sizes(self, class_name: str, parts: Sequence[Part]) -> dict[Dtype, int]:
        """Return the bytes in each format that the model may be loaded in; empty for a small model."""
        if self.choose_formats(class_name, parts).has_network_copy:
            return {}
        return {dtype: self.make_single_formats(dtype, class_name, parts).count_bytes(parts) for dtype in TORCH_DTYPES}


def choose_training_formats(parts: Sequence[Part]) -> PartFormats:
    """Return formats for training: float32, except for parts too large for that."""
    return PartFormats(
        {part.name: part.stored_dtype if part.parameters > HUGE_PARAMETERS else "float32" for part in parts}
    )


def choose_single_format(device: torch.device, stored_dtype: Dtype, *, prefers_bfloat16: bool = False) -> Dtype:
    """Return the format for a large model: half the bits where the device computes with them, else float32.

    On a GPU that is the files' half format, if the GPU supports it. On a processor it is bfloat16, whatever the files
    have. `prefers_bfloat16`: also on a GPU, since sums of quantised weights may be too large for float16.
    """
    if device.type == "cuda":
        supported: tuple[Dtype, ...] = HALF_FORMATS if torch.cuda.is_bf16_supported() else ("float16",)
        return stored_dtype if stored_dtype in supported and not prefers_bfloat16 else supported[0]
    return "bfloat16" if has_bfloat16() else "float32"


def has_bfloat16() -> bool:
    """Whether this processor has bfloat16 instructions."""
    cpu: Any = torch.cpu  # no public name tells
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
