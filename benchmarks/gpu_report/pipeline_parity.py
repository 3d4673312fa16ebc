"""Parity of every kind of model, small and random, with its unmodified pipeline on the same device."""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image

from benchmarks.fixtures.reference_pipeline import call_pipeline, make_job
from benchmarks.fixtures.small_pipelines import PIPELINE_BUILDERS, save_small_pipeline
from benchmarks.report.errors import describe_error
from benchmarks.report.figure_row import FigureRow
from benchmarks.report.measures import psnr
from engine import models
from engine.batching.engine import Engine, JobFailure, LatentsDone
from engine.batching.init_latents import load_init_latents
from engine.batching.input_pictures import load_pictures
from engine.contract import Concept, Dtype, Recipe, Sampler
from engine.models.family import Family, HasDefaultSampling
from engine.models.quantization.quantized_network import find_quantization
from engine.models.whole_pipeline.generic_family import GenericFamily

STEPS = 4
IMAGE_SIDE = 64
GUIDANCE = 4.0
SEED = 3
PREFERRED_SAMPLERS: tuple[Sampler, ...] = ("euler", "dpmpp_2m")


def measure_parity_rows(
    device: torch.device, print_progress: Callable[[str], None], kinds: tuple[str, ...] = ()
) -> list[FigureRow]:
    """Return one row for each kind; all kinds if none is named."""
    with tempfile.TemporaryDirectory(prefix="darkroom-report-") as temp_folder:
        return list(_measure_kinds(Path(temp_folder), device, print_progress, kinds or tuple(PIPELINE_BUILDERS)))


def _measure_kinds(
    temp_folder: Path, device: torch.device, print_progress: Callable[[str], None], kinds: tuple[str, ...]
) -> Iterator[FigureRow]:
    for kind in kinds:
        print_progress(f"parity of {kind}")
        try:
            yield _measure_kind(kind, temp_folder / kind, device)
        except Exception as error:  # the report is for finding kinds that fail here; the others go on
            yield FigureRow(f"{kind}: latents against the pipeline", None, "≤ 1e-4", "", describe_error(error))


def _measure_kind(kind: str, folder: Path, device: torch.device) -> FigureRow:
    save_small_pipeline(kind, folder)
    family = models.load_folder(str(folder), kind, device)
    pipeline = import_module("diffusers").DiffusionPipeline.from_pretrained(folder).to(device)
    pipeline.set_progress_bar_config(disable=True)
    pipeline_class = type(pipeline).__name__
    if isinstance(family, GenericFamily):  # the pipeline's own call draws its pictures
        engine_result = _draw_picture(family, make_recipe(family, "native"))
        pipeline_result = _call_pipeline_unchanged(pipeline, family)
        return FigureRow(
            f"{kind}: picture against {pipeline_class}", psnr(engine_result, pipeline_result), "≥ 60", "dB"
        )
    recipe = make_recipe(family, _choose_sampler(family))
    engine_result = run_engine(family, recipe)
    pipeline_result = call_pipeline(pipeline, family, recipe)[0]
    relative_error = float((engine_result - pipeline_result).abs().max()) / max(1.0, float(pipeline_result.abs().max()))
    if not math.isfinite(relative_error):
        raise RuntimeError("the latents are not finite")
    return FigureRow(
        f"{kind}: latents against {pipeline_class}",
        relative_error,
        "≤ 1e-4",
        "",
        f"float32, {STEPS} steps of {recipe.sampler}",
    )


def _choose_sampler(family: Family) -> Sampler:
    """Choose the model's own sampler if it has one, as latent consistency does."""
    default_sampling = family.default_sampling if isinstance(family, HasDefaultSampling) else None
    candidates = (*((default_sampling[1],) if default_sampling else ()), *PREFERRED_SAMPLERS, *family.samplers)
    return next(sampler for sampler in candidates if sampler in family.samplers)


def make_recipe(family: Family, sampler: Sampler, dtype: Dtype = "float32") -> Recipe:
    """Return a recipe of one picture: of several, the one that ends first need not be the first one."""
    return Recipe(
        concepts=(Concept("a cat"),),
        model=family.name,
        sampler=sampler,
        steps=STEPS,
        seed=SEED,
        guidance=GUIDANCE,
        width=IMAGE_SIDE,
        height=IMAGE_SIDE,
        dtype=dtype,
        guidance_kind=family.guides,
        count=1,
        quantization=find_quantization(family),
    )


def run_engine(family: Family, recipe: Recipe, blobs: Mapping[str, bytes] = MappingProxyType({})) -> torch.Tensor:
    """Return the latents of the recipe's picture. `blobs`: what it needs, by SHA-256.

    Raises RuntimeError if the job fails.
    """
    engine = Engine({family.name: family})
    try:
        init_latents = load_init_latents(recipe, blobs, family)
        pictures = load_pictures(recipe, blobs, family)
        engine.add(make_job(recipe), (), init_latents, pictures)
        while not engine.is_idle:
            for event in engine.step():
                if isinstance(event, JobFailure):
                    raise RuntimeError(event.reason)
                if isinstance(event, LatentsDone):
                    return event.latents
    finally:
        engine.close()
    raise RuntimeError("the engine ended without latents")


def _draw_picture(family: Family, recipe: Recipe) -> Image.Image:
    return family.finish(run_engine(family, recipe))


def _call_pipeline_unchanged(pipeline: Any, family: GenericFamily) -> Image.Image:
    """Call the pipeline with its own scheduler. Its guidance may count from 0 where ours counts from 1."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    extra_arguments = {name: False for name in ("use_resolution_binning", "clean_caption") if name in parameters}
    return pipeline(
        "a cat",
        negative_prompt="",
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE - 1 + family.no_guidance,
        width=IMAGE_SIDE,
        height=IMAGE_SIDE,
        generator=torch.Generator().manual_seed(SEED),
        **extra_arguments,
    ).images[0]
