"""Opens a folder of diffusers as a float32 `StableDiffusionPipeline`, or says in one sentence why it can't be one.

Weights are safetensors or nothing: a pickle can run code when it is opened. Knows nothing of sampling or training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from engine.families.quiet import quiet
from engine.unfit import Unfit


def folder_of(source: str) -> Path:
    """A folder, or a name on the model hub, which is fetched. Raises `Unfit`."""
    return Path(source) if Path(source).is_dir() else Path(_download(source))


def open_pipeline(folder: Path, name: str) -> Any:
    """The pipeline of a folder. Raises `Unfit` where that is no such model in safetensors."""
    _refuse_pickles(folder)
    try:
        with quiet():
            pipeline = StableDiffusionPipeline.from_pretrained(
                str(folder), use_safetensors=True, requires_safety_checker=False, safety_checker=None,
                feature_extractor=None, dtype=torch.float32, local_files_only=True,
            )  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Unfit(f"The model {name} is not a Stable Diffusion model that can be loaded.", "model") from error
    _refuse_other_inputs(pipeline, name)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _download(source: str) -> str:
    try:
        return str(StableDiffusionPipeline.download(source, use_safetensors=True, safety_checker=None))
    except (OSError, ValueError) as error:
        sentence = f"There is no model {source}: neither a folder nor one on the hub in safetensors."
        raise Unfit(sentence, "model") from error


def _refuse_other_inputs(pipeline: Any, name: str) -> None:
    """An inpainting or depth network also takes a picture and a mask, which no recipe of ours has."""
    network = pipeline.unet.config
    if not network.in_channels == network.out_channels == pipeline.vae.config.latent_channels:
        raise Unfit(f"The model {name} needs more than words (inpainting, depth …), which is not supported.", "model")


def _refuse_pickles(folder: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        if not list((folder / part).glob("*.safetensors")):
            pickled = any((folder / part).glob("*.bin")) or any((folder / part).glob("*.ckpt"))
            why = "only as a pickle, which can run code when it is opened" if pickled else "not at all"
            raise Unfit(f"The model holds the weights of its {part} {why}: convert them to safetensors.", "model")
