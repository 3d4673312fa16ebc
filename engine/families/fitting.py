"""Checks whether a LoRA fits a pipeline's network, by names and shapes in its file; changes no network.

diffusers reads the many formats; here each matrix is checked against a layer of its size. Parts for text encoders are
tried when a job uses the LoRA, as there are few kinds of encoders.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import torch
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

from engine.families.adapted import loading
from engine.families.additions import Addition

log = logging.getLogger(__name__)

_MATRIX = re.compile(r"^(.+)\.lora_([AB])\.(?:\w+\.)?weight$")


def fits(pipeline: Any, network: str, one: Addition) -> bool:
    """Whether the LoRA fits; logs why not."""
    try:
        with loading():
            matrices = _matrices(pipeline, one)
        wrong = _wrong(getattr(pipeline, network), _of(matrices, network))
    except Exception as error:  # untrusted files, many conversions: any error is possible
        wrong = str(error).partition("\n")[0] or type(error).__name__
    if wrong:
        log.warning("left out: the LoRA %s does not fit the model: %s", one.name, wrong)
    return not wrong


def _matrices(pipeline: Any, one: Addition) -> dict[str, torch.Tensor]:
    """Return the matrices for this pipeline's parts, by diffusers' names."""
    read = pipeline.lora_state_dict(
        str(one.path.parent), weight_name=one.path.name, use_safetensors=True, local_files_only=True,
        **({"unet_config": pipeline.unet.config} if hasattr(pipeline, "unet") else {}),
    )  # fmt: skip
    found = read[0] if isinstance(read, tuple) else read
    parts = tuple(f"{part}." for part in pipeline._lora_loadable_modules)
    ours = {name: value for name, value in found.items() if name.startswith(parts)}
    if not ours or not all("lora" in name for name in found):
        raise ValueError("it is no LoRA of such a model")
    return ours


def _of(matrices: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    own = {name.removeprefix(f"{part}."): value for name, value in matrices.items() if name.startswith(f"{part}.")}
    return own if any("lora_A" in name for name in own) else convert_unet_state_dict_to_peft(own)


def _wrong(network: Any, matrices: dict[str, torch.Tensor]) -> str:
    """Return the first mismatch; empty: none. W [out, in, …] becomes W + B [out, r]·A [r, in, …]."""
    layers = dict(network.named_modules())
    for name, matrix in matrices.items():
        found = _MATRIX.match(name)
        weight = getattr(layers.get(found[1]), "weight", None) if found else None
        if found is None:
            continue  # a scale or a bias
        if weight is None:
            return f"there is no {found[1]}"
        same = matrix.shape[1:] == weight.shape[1:] if found[2] == "A" else matrix.shape[0] == weight.shape[0]
        if not same:
            return f"{name} has the shape {list(matrix.shape)}"
    return ""
