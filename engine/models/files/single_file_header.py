"""What the header of one safetensors file says of a pipeline's parts, in the layouts of the original programs.

Reads no weights. The parts are told apart by the prefixes of their weights' names.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open

from engine.contract import Dtype
from engine.contract.rejection import JobRejected
from engine.models.files.pipeline_parts import SAFETENSORS_DTYPES, Part
from engine.models.quantization.matrix_sizes import Matrix, find_matrix
from engine.models.quantization.stored_quantization import PackedWeights

PartGroup = Literal["network", "vae", "text_encoder"]
TEXT_ENCODER_PREFIXES = ("cond_stage_model.", "conditioner.", "text_encoders.", "text_encoder.")
AUTOENCODER_PREFIXES = ("first_stage_model.", "vae.")
FLOAT8 = "F8_E4M3"
SCALE_SUFFIXES = (".scale_weight", ".weight_scale", "scaled_fp8")  # of weights that mean nothing without their scales


@dataclass
class WeightGroup:
    """The weights of one part: how many in each number format, and the matrices of linear layers."""

    counts: Counter[str] = field(default_factory=Counter[str])
    matrices: list[Matrix] = field(default_factory=list[Matrix])

    def make_part(self, name: str, part_class: Any = None, files: tuple[Path, ...] = ()) -> Part:
        """Return the part. One that is mostly float8 counts as bfloat16, in which it would be computed."""
        most_common = self.counts.most_common(1)[0][0]
        stored_dtype: Dtype = "bfloat16" if most_common == FLOAT8 else SAFETENSORS_DTYPES.get(most_common, "float32")
        float8_count = self.counts[FLOAT8]
        packed = PackedWeights("float8", float8_count, float8_count) if most_common == FLOAT8 else None
        return Part(
            name,
            part_class,
            sum(self.counts.values()),
            stored_dtype,
            files=files,
            matrices=tuple(self.matrices),
            packed=packed,
        )


def read_groups(path: Path, name: str) -> dict[PartGroup, WeightGroup]:
    """Return the groups that the file has. Raises `JobRejected` where it cannot be read, or its weights are scaled."""
    groups: dict[PartGroup, WeightGroup] = {}
    try:
        with cast(Any, safe_open)(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                _refuse_scale(key, name)
                tensor = file.get_slice(key)
                group = groups.setdefault(find_group(key), WeightGroup())
                shape = torch.Size(tensor.get_shape())
                group.counts[tensor.get_dtype()] += shape.numel()
                if (matrix := find_matrix(key, shape)) is not None:
                    group.matrices.append(matrix)
    except (OSError, SafetensorError) as error:
        raise JobRejected(f"The model {name} cannot be read: its file is no safetensors.", "model") from error
    return groups


def find_group(key: str) -> PartGroup:
    """Return the part that a weight belongs to, by its name."""
    if key.startswith(TEXT_ENCODER_PREFIXES):
        return "text_encoder"
    return "vae" if key.startswith(AUTOENCODER_PREFIXES) else "network"


def _refuse_scale(key: str, name: str) -> None:
    if key.endswith(SCALE_SUFFIXES):
        sentence = f"The model {name} stores fp8 weights with scales of their own, which is not supported"
        raise JobRejected(f"{sentence}: take one with plain fp8 weights, or GGUF.", "model")
