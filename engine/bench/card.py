"""Throughput goals for a CUDA device: random-weight models of SD 1.5 and SDXL size beside diffusers.

Random weights do not change speed. The text encoder is MiniLM, so cross-attention reads 384 features instead of 768 or
2048. Without a CUDA device the rows say so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from engine.bench import throughput
from engine.bench.crowd import Load, cast
from engine.bench.row import Row
from engine.families.embedded import load_text_encoder
from engine.families.family import Family
from engine.families.stable_diffusion import StableDiffusion

STEPS = 20
NO_CARD = "no CUDA device here: not measured"
GOALS = (
    ("SD 1.5 size, 512², 8 users: images/s against diffusers eager", "≥ 3"),
    ("SD 1.5 size, 512², 8 users: images/s against diffusers compiled", "≥ 1.5"),
    ("SDXL size, 1024², 8 users: images/s against diffusers eager", "≥ 1.3"),
)
# The published configurations, except for the text features' width and SDXL's size conditioning.
SD_15: dict[str, Any] = {"sample_size": 64, "attention_head_dim": 8}
SDXL: dict[str, Any] = {
    "sample_size": 128, "attention_head_dim": [5, 10, 20], "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
QUIET: dict[str, Any] = {"steps_offset": 1, "clip_sample": False}  # the pipeline would set the same, with a warning
AUTOENCODER: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
Made = tuple[Family, Any]  # our family and the diffusers pipeline on the same weights


def card_rows(say: Callable[[str], None]) -> list[Row]:
    """Return the rows, measured in bfloat16; without a CUDA device, rows that have no figure."""
    if not torch.cuda.is_available():
        return [Row(name, None, goal, "×", NO_CARD) for name, goal in GOALS]
    say(f"on {torch.cuda.get_device_name()}")
    return measured(lambda: made("cuda", SD_15), lambda: made("cuda", SDXL), Load(STEPS, "bfloat16"))


def measured(first: Callable[[], Made], second: Callable[[], Made], load: Load) -> list[Row]:
    """Return the three rows. Builds the second model after freeing the first."""
    (eager, goal), (compiled, compiled_goal), (larger, larger_goal) = GOALS
    family, pipeline = first()
    cast(pipeline, load.dtype)
    rows = [Row(eager, throughput.faster(pipeline, family, load), goal, "×")]
    found = throughput.compiled(pipeline, family, load)
    rows.append(Row(compiled, found.figure, compiled_goal, "×", found.note))
    del family, pipeline
    family, pipeline = second()
    cast(pipeline, load.dtype)
    return [*rows, Row(larger, throughput.faster(pipeline, family, load), larger_goal, "×")]


def made(device: str, network: dict[str, Any], autoencoder: dict[str, Any] = AUTOENCODER) -> Made:
    """Build a Stable Diffusion pipeline with random weights, as our family and as diffusers' pipeline."""
    torch.manual_seed(0)
    tokenizer, encoder = load_text_encoder()
    levels = len(autoencoder["block_out_channels"])
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    unused: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(cross_attention_dim=encoder.config.hidden_size, **network),
        "vae": AutoencoderKL(**kinds, **autoencoder), "text_encoder": encoder, "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **QUIET),
    }  # fmt: skip
    pipeline = StableDiffusionPipeline(**parts, **unused).to(device)
    pipeline.set_progress_bar_config(disable=True)
    family = StableDiffusion(copy.deepcopy(pipeline), "random", "random", device)
    family.forwards.record()
    return family, pipeline
