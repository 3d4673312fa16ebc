"""The goals that need a card: networks of the sizes people run, with random weights, beside diffusers on the same card.

Speed does not depend on what a network has learnt. The words come from MiniLM, so cross-attention reads 384 features
instead of 768 or 2048. Where there is no card, the rows say so.
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
# As published with the weights, but for the number of features of a word and SDXL's sizes as conditions.
SD_15: dict[str, Any] = {"sample_size": 64, "attention_head_dim": 8}
SDXL: dict[str, Any] = {
    "sample_size": 128, "attention_head_dim": [5, 10, 20], "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
QUIET: dict[str, Any] = {"steps_offset": 1, "clip_sample": False}  # what the pipeline would put there, with a warning
AUTOENCODER: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
Made = tuple[Family, Any]  # ours, and the rival's pipeline on the same weights


def card_rows(say: Callable[[str], None]) -> list[Row]:
    """Measured where there is a card, in bfloat16."""
    if not torch.cuda.is_available():
        return [Row(name, None, goal, "×", NO_CARD) for name, goal in GOALS]
    say(f"on {torch.cuda.get_device_name()}")
    return measured(lambda: made("cuda", SD_15), lambda: made("cuda", SDXL), Load(STEPS, "bfloat16"))


def measured(first: Callable[[], Made], second: Callable[[], Made], load: Load) -> list[Row]:
    """The three rows; the second model is made when the first is gone."""
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
    """A Stable Diffusion pipeline of these sizes with random weights, for us and for the rival."""
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
