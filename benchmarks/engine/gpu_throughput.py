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

from benchmarks.engine import throughput
from benchmarks.engine.workload import Workload, cast_pipeline
from benchmarks.report.figure_row import FigureRow
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.family import Family
from engine.models.text_embedder import load_text_encoder

STEPS = 20
NO_GPU_NOTE = "no CUDA device here: not measured"
ROW_GOALS = (
    ("SD 1.5 size, 512², 8 users: images/s against diffusers eager", "≥ 3"),
    ("SD 1.5 size, 512², 8 users: images/s against diffusers compiled", "≥ 1.5"),
    ("SDXL size, 1024², 8 users: images/s against diffusers eager", "≥ 1.3"),
)
# The published configurations, except for the text features' width and SDXL's size conditioning.
SD15_UNET_CONFIG: dict[str, Any] = {"sample_size": 64, "attention_head_dim": 8}
SDXL_UNET_CONFIG: dict[str, Any] = {
    "sample_size": 128,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
SCHEDULER_OPTIONS: dict[str, Any] = {
    "steps_offset": 1,
    "clip_sample": False,
}  # the pipeline would set the same, with a warning
AUTOENCODER_CONFIG: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
ModelPair = tuple[Family, Any]  # our family and the diffusers pipeline on the same weights


def measure_gpu_rows(print_progress: Callable[[str], None]) -> list[FigureRow]:
    """Return the rows, measured in bfloat16; without a CUDA device, rows that have no figure."""
    if not torch.cuda.is_available():
        return [FigureRow(name, None, goal, "×", NO_GPU_NOTE) for name, goal in ROW_GOALS]
    print_progress(f"on {torch.cuda.get_device_name()}")
    return measure_model_rows(
        lambda: build_random_model("cuda", SD15_UNET_CONFIG),
        lambda: build_random_model("cuda", SDXL_UNET_CONFIG),
        Workload(STEPS, "bfloat16"),
    )


def measure_model_rows(
    build_first: Callable[[], ModelPair], build_second: Callable[[], ModelPair], load: Workload
) -> list[FigureRow]:
    """Return the three rows. Builds the second model after freeing the first."""
    (eager_name, eager_goal), (compiled_name, compiled_goal), (larger_name, larger_goal) = ROW_GOALS
    family, pipeline = build_first()
    cast_pipeline(pipeline, load.dtype)
    rows = [FigureRow(eager_name, throughput.measure_speedup(pipeline, family, load), eager_goal, "×")]
    compiled_row = throughput.compare_compiled(pipeline, family, load)
    rows.append(FigureRow(compiled_name, compiled_row.figure, compiled_goal, "×", compiled_row.note))
    del family, pipeline
    family, pipeline = build_second()
    cast_pipeline(pipeline, load.dtype)
    return [*rows, FigureRow(larger_name, throughput.measure_speedup(pipeline, family, load), larger_goal, "×")]


def build_random_model(
    device: str, unet_config: dict[str, Any], autoencoder_config: dict[str, Any] = AUTOENCODER_CONFIG
) -> ModelPair:
    """Build a Stable Diffusion pipeline with random weights, as our family and as diffusers' pipeline."""
    torch.manual_seed(0)
    tokenizer, text_encoder = load_text_encoder()
    level_count = len(autoencoder_config["block_out_channels"])
    block_types = {
        "down_block_types": ("DownEncoderBlock2D",) * level_count,
        "up_block_types": ("UpDecoderBlock2D",) * level_count,
    }
    unused_parts: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(cross_attention_dim=text_encoder.config.hidden_size, **unet_config),
        "vae": AutoencoderKL(**block_types, **autoencoder_config),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **SCHEDULER_OPTIONS
        ),
    }
    pipeline = StableDiffusionPipeline(**parts, **unused_parts).to(device)
    pipeline.set_progress_bar_config(disable=True)
    family = StableDiffusion(copy.deepcopy(pipeline), "random", "random", device)
    family.forward_runner.enable_cuda_graphs()
    return family, pipeline
