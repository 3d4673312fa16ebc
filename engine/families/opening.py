"""Opens a folder of diffusers, or a name on the model hub, as the float32 pipeline that it says it is.

Weights are safetensors or nothing: a pickle can run code when it is opened. Knows nothing of sampling or training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from engine.families.pipelined import UNUSED
from engine.families.quiet import quiet
from engine.unfit import Unfit


def folder_of(source: str) -> Path:
    """A folder, or a name on the model hub, which is fetched. Raises `Unfit`."""
    return Path(source) if Path(source).is_dir() else Path(_download(source))


def open_pipeline(folder: Path, name: str) -> Any:
    """The pipeline of a folder. Raises `Unfit` where that is no such model in safetensors."""
    index = _index(folder, name)
    _refuse_pickles(folder, index)
    kind = getattr(diffusers, str(index["_class_name"]), None)
    if not isinstance(kind, type) or not issubclass(kind, DiffusionPipeline):
        raise Unfit(f"The model {name} is of a kind that diffusers does not know.", "model")
    unused: dict[str, Any] = {part: None for part in UNUSED if part in index}
    if "safety_checker" in index:
        unused["requires_safety_checker"] = False
    try:
        with quiet():
            pipeline = kind.from_pretrained(
                str(folder), use_safetensors=True, dtype=torch.float32, local_files_only=True, **unused
            )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Unfit(f"The model {name} is not a model that can be loaded.", "model") from error
    _refuse_other_inputs(pipeline, name)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _index(folder: Path, name: str) -> dict[str, Any]:
    """What the folder says that it is."""
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise Unfit(f"The model {name} has no model_index.json that can be read.", "model") from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise Unfit(f"The model {name} does not say which pipeline it is (model_index.json).", "model")
    return index


def _download(source: str) -> str:
    try:
        return str(DiffusionPipeline.download(source, use_safetensors=True, safety_checker=None))
    except (OSError, ValueError) as error:
        sentence = f"There is no model {source}: neither a folder nor one on the hub in safetensors."
        raise Unfit(sentence, "model") from error


def _refuse_other_inputs(pipeline: Any, name: str) -> None:
    """An inpainting or depth network also takes a picture and a mask, which no recipe of ours has."""
    if getattr(pipeline, "unet", None) is None or getattr(pipeline, "vae", None) is None:
        return
    network = pipeline.unet.config
    if not network.in_channels == network.out_channels == pipeline.vae.config.latent_channels:
        raise Unfit(f"The model {name} needs more than words (inpainting, depth …), which is not supported.", "model")


def _refuse_pickles(folder: Path, index: dict[str, Any]) -> None:
    """Every part with weights of its own has them in safetensors."""
    for part in (part for part, of in index.items() if isinstance(of, list) and part not in UNUSED):
        weights = [each for pattern in ("*.bin", "*.ckpt", "*.pt", "*.pth") for each in (folder / part).glob(pattern)]
        network = (folder / part / "config.json").exists()
        if (weights or network) and not list((folder / part).glob("*.safetensors")):
            why = "only as a pickle, which can run code when it is opened" if weights else "not at all"
            raise Unfit(f"The model holds the weights of its {part} {why}: convert them to safetensors.", "model")
