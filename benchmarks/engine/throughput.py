"""Pictures a second beside diffusers: default, our number format, compiled; mixed loads; the guidance interval.

Every figure is the median of several rounds; in each round both sides run one after the other. Beside them stand the
network without our engine, and goals for a CUDA device with random-weight models of SD 1.5 and SDXL size. Random
weights do not change speed. Their text encoder is MiniLM, so cross-attention reads 384 features instead of 768 or 2048.
"""

from __future__ import annotations

import copy
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from benchmarks.engine import workload
from benchmarks.engine.workload import USERS, Workload, cast_pipeline
from benchmarks.report.figure_row import FigureRow, print_progress
from engine.calibration.measurement import probe_recipe
from engine.contract import Dtype, Recipe, count_row_steps
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.family import TORCH_DTYPES, Family
from engine.models.network.network_copies import place_network
from engine.models.text_embedder import load_text_encoder

log = logging.getLogger(__name__)

ROUNDS = 3
DEFAULT_ROUNDS = 7  # against diffusers by default: single rounds vary by a tenth


def measure_speedup(pipeline: Any, family: Family, load: Workload, rounds: int | None = None) -> float:
    """Return our pictures a second divided by the pipeline's."""
    _warm_up(pipeline, family, load)
    return median(_measure_round(pipeline, family, load) for _ in range(rounds or ROUNDS))


def _measure_round(pipeline: Any, family: Family, load: Workload) -> float:
    """Run one round. The pipeline encodes each job's prompt anew, so our cache is emptied."""
    if isinstance(family, DiffusersFamily):
        family.text_cache.clear()
    return workload.time_diffusers(pipeline, family, load) / workload.time_engine(family, load)


def compare_default(pipeline: Any, family: Family, load: Workload, goal: str) -> FigureRow:
    """Compare with `pipeline` in float32, as diffusers loads it."""
    name = f"{load.users} users × {load.count} picture: images/s against diffusers by default"
    return FigureRow(name, measure_speedup(pipeline, family, load, DEFAULT_ROUNDS), goal, "×")


def compare_equal_dtype(pipeline: Any, family: Family, load: Workload, goal: str) -> FigureRow:
    """Divide our gain over the pipeline in our number format by the bare network's gain from sixteen rows at once."""
    workload.cast_pipeline(pipeline, load.dtype)
    _warm_up(pipeline, family, load)
    pairs = [(_measure_round(pipeline, family, load), measure_batch_speedup(family, load.dtype)) for _ in range(ROUNDS)]
    engine_speedup, network_speedup = (median(values) for values in zip(*pairs, strict=True))
    name = "the same in equal dtype, as a share of the bare network's batch gain"
    note = f"{engine_speedup:.2f} × faster where the bare network gains {network_speedup:.2f} ×"
    return FigureRow(name, engine_speedup / network_speedup, goal, "", note)


def compare_four_pictures(pipeline: Any, family: Family, load: Workload) -> FigureRow:
    """Compare jobs of four pictures, which the pipeline batches itself; both in our number format."""
    workload.cast_pipeline(pipeline, load.dtype)
    speedup = measure_speedup(pipeline, family, replace(load, count=4))
    return FigureRow(f"{USERS} users × 4 pictures: images/s, equal dtype", speedup, "≥ 1.15", "×")


def compare_compiled(pipeline: Any, family: Family, load: Workload) -> FigureRow:
    """Compare with the pipeline's network compiled by torch, in our number format. Compile time is not counted."""
    name = f"{USERS} users × 1 picture: images/s against diffusers compiled, equal dtype"
    if not (torch.cuda.is_available() or shutil.which("g++") or shutil.which("clang++")):
        return FigureRow(name, None, "≥ 1.5", "×", "there is no C++ compiler here, which torch.compile needs")
    workload.cast_pipeline(pipeline, load.dtype)
    eager_forward = pipeline.unet.forward
    pipeline.unet.forward = torch.compile(eager_forward, dynamic=False)
    try:
        if error_name := _find_compile_error(pipeline, family, load):
            return FigureRow(name, None, "≥ 1.5", "×", f"torch could not compile the network: {error_name}")
        return FigureRow(name, measure_speedup(pipeline, family, load), "≥ 1.5", "×")
    finally:
        pipeline.unet.forward = eager_forward


def _find_compile_error(pipeline: Any, family: Family, load: Workload) -> str:
    """Return the name of the error that torch's compiler raises on its first use, or nothing."""
    try:
        workload.time_diffusers(pipeline, family, replace(load, steps=2, users=1))
    except RuntimeError as error:  # all of its failures are RuntimeErrors
        log.warning("torch.compile: %s", error)
        return type(error).__name__
    return ""


def compare_guidance_interval(family: Family, load: Workload) -> FigureRow:
    """Compare guidance in the family's interval with guidance at every step.

    `train evaluate` shows the pictures' side.
    """
    start, stop = family.interval
    ratio = _compare_loads(family, load, replace(load, guidance_interval=family.interval))
    note = f"guidance from {start:g} to {stop:g} of the steps; `train evaluate --only guidance` has its pictures"
    return FigureRow("guidance interval on, against off: images/s", ratio, "≥ 1.3", "×", note)


def compare_mixed_load(family: Family, load: Workload) -> FigureRow:
    """Compare row-steps a second of a mix of samplers, steps and guidance with a load of one kind."""
    mixed_load = replace(load, mixed=True)
    ratio = _compare_loads(family, load, mixed_load)
    ratio *= _count_row_steps(family, mixed_load) / _count_row_steps(family, load)
    return FigureRow("mixed load against an equal one of one kind: row-steps/s", ratio, "≥ 0.95", "×")


def compare_init_images(family: Family, load: Workload) -> FigureRow:
    """Compare jobs from an init image and a mask with as many steps of others; encoding counts, too."""
    ratio = _compare_loads(family, load, replace(load, with_init_image=True))
    return FigureRow("begun with a picture and a mask, against words alone: images/s", ratio, "≥ 0.95", "×")


def _compare_loads(family: Family, load: Workload, other_load: Workload) -> float:
    """Return how many times faster the other load runs, by the median round."""
    workload.time_engine(family, replace(other_load, steps=8))
    return median(workload.time_engine(family, load) / workload.time_engine(family, other_load) for _ in range(ROUNDS))


def _count_row_steps(family: Family, load: Workload) -> int:
    return sum(count_row_steps(job.task) for job in load.make_jobs(family) if isinstance(job.task, Recipe))


def _warm_up(pipeline: Any, family: Family, load: Workload) -> None:
    """Run both sides briefly before the first round, to build kernels and pack weights."""
    brief_load = replace(load, steps=4, users=load.users)
    workload.time_engine(family, brief_load)
    workload.time_diffusers(pipeline, family, replace(brief_load, users=1))


NETWORK_ROUNDS = 15
WARMUP_FORWARDS = 3  # uncounted forwards: they build kernels and pack weights


def measure_batch_speedup(family: Family, dtype: Dtype, rounds: int | None = None) -> float:
    """Return how much faster the network runs sixteen rows at once than two at a time: the most that batching can gain.

    Uses the pipeline's plain network, not our engine's forward.
    """
    few_rows, many_rows = (make_plain_forward(family, rows, dtype) for rows in (2, 2 * USERS))
    few_seconds, many_seconds = _time_in_turn(few_rows, many_rows, rounds or NETWORK_ROUNDS)
    return USERS * few_seconds / many_seconds


def measure_forward_rows(family: Family, dtype: Dtype) -> list[FigureRow]:
    """Compare our forward with packed weights against the plain network."""
    results = list[FigureRow]()
    for rows in (2, 2 * USERS):
        forwards = make_plain_forward(family, rows, dtype), make_engine_forward(family, rows, dtype)
        plain_seconds, engine_seconds = _time_in_turn(*forwards, NETWORK_ROUNDS)
        name = f"a forward of {rows} rows, {dtype}: plain network / ours"
        results.append(FigureRow(name, plain_seconds / engine_seconds, None, "×"))
    return results


def _time_in_turn(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median seconds of both, which take turns."""
    pairs = [(time_call(first), time_call(second)) for _ in range(rounds + WARMUP_FORWARDS)][WARMUP_FORWARDS:]
    return median(seconds for seconds, _ in pairs), median(seconds for _, seconds in pairs)


def make_plain_forward(family: Family, rows: int, dtype: Dtype) -> Callable[[], object]:
    """Return a function that runs one forward of the unmodified network at the native size."""
    x, t, conditioning = _make_inputs(family, rows)
    assert isinstance(family, DiffusersFamily)  # the benchmark's families are
    network = place_network(copy.deepcopy(getattr(family.pipeline, family.network_name)), family.device, dtype)
    torch_dtype = TORCH_DTYPES[dtype]
    text = conditioning[0].to(torch_dtype)

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        return network(x.to(torch_dtype), t, encoder_hidden_states=text, return_dict=False)[0]

    return forward


def make_engine_forward(family: Family, rows: int, dtype: Dtype) -> Callable[[], object]:
    """Return a function that runs one forward of our engine."""
    x, t, conditioning = _make_inputs(family, rows)
    return torch.inference_mode()(lambda: family.denoise(x, t, conditioning, dtype))


def _make_inputs(family: Family, rows: int) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    x = torch.randn(rows, *family.latent_shape(family.size, family.size), device=family.device)
    parts = family.encode_conditioning("cat", probe_recipe(family))
    timesteps = torch.full((rows,), 500.0, device=family.device)
    return x, timesteps, tuple(part.expand(rows, *part.shape) for part in parts)


def time_call(function: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    started_at = time.perf_counter()
    function()
    return time.perf_counter() - started_at


GPU_STEPS = 20
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
# The pipeline would set the same, with a warning.
SCHEDULER_OPTIONS: dict[str, Any] = {"steps_offset": 1, "clip_sample": False}
AUTOENCODER_CONFIG: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
ModelPair = tuple[Family, Any]  # our family and the diffusers pipeline on the same weights


def measure_gpu_rows() -> list[FigureRow]:
    """Return the rows, measured in bfloat16; without a CUDA device, rows that have no figure."""
    if not torch.cuda.is_available():
        return [FigureRow(name, None, goal, "×", NO_GPU_NOTE) for name, goal in ROW_GOALS]
    print_progress(f"on {torch.cuda.get_device_name()}")
    return measure_model_rows(
        lambda: build_random_model("cuda", SD15_UNET_CONFIG),
        lambda: build_random_model("cuda", SDXL_UNET_CONFIG),
        Workload(GPU_STEPS, "bfloat16"),
    )


def measure_model_rows(
    build_first: Callable[[], ModelPair], build_second: Callable[[], ModelPair], load: Workload
) -> list[FigureRow]:
    """Return the three rows. Builds the second model after freeing the first."""
    (eager_name, eager_goal), (compiled_name, compiled_goal), (larger_name, larger_goal) = ROW_GOALS
    family, pipeline = build_first()
    cast_pipeline(pipeline, load.dtype)
    rows = [FigureRow(eager_name, measure_speedup(pipeline, family, load), eager_goal, "×")]
    compiled_row = compare_compiled(pipeline, family, load)
    rows.append(FigureRow(compiled_name, compiled_row.figure, compiled_goal, "×", compiled_row.note))
    del family, pipeline
    family, pipeline = build_second()
    cast_pipeline(pipeline, load.dtype)
    return [*rows, FigureRow(larger_name, measure_speedup(pipeline, family, load), larger_goal, "×")]


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
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **SCHEDULER_OPTIONS)
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(cross_attention_dim=text_encoder.config.hidden_size, **unet_config),
        "vae": AutoencoderKL(**block_types, **autoencoder_config),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "scheduler": scheduler,
    }
    pipeline = StableDiffusionPipeline(**parts, **unused_parts).to(device)
    pipeline.set_progress_bar_config(disable=True)
    family = StableDiffusion(copy.deepcopy(pipeline), "random", "random", device)
    family.forward_runner.enable_cuda_graphs()
    return family, pipeline
