"""Whether a LoRA fits a pipeline's network, by the names and shapes in its file: no network is changed for it.

diffusers reads the many formats; what remains to be told is whether each matrix has a layer of its size. The parts for
text encoders, which are few kinds, are tried when a job asks for them. Knows no folder and no job.
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
    """Says why not in the log."""
    try:
        with loading():
            matrices = _matrices(pipeline, one)
        wrong = _wrong(getattr(pipeline, network), _of(matrices, network))
    except Exception as error:  # files of strangers, read by many conversions: anything may come
        wrong = str(error).partition("\n")[0] or type(error).__name__
    if wrong:
        log.warning("left out: the LoRA %s does not fit the model: %s", one.name, wrong)
    return not wrong


def _matrices(pipeline: Any, one: Addition) -> dict[str, torch.Tensor]:
    """By names as diffusers has them, of the parts that the pipeline has."""
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
    """The first matrix without a layer of its size, or nothing: W [out, in, …] becomes W + B [out, r]·A [r, in, …]."""
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
