"""Parity of small random models with the unmodified pipelines on one device: every kind, pictures, quantisations."""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image, ImageDraw

from benchmarks.fixtures.jobs import make_recipe as make_family_recipe
from benchmarks.fixtures.jobs import name_blobs, run_engine
from benchmarks.fixtures.reference_pipeline import (
    call_inpainting,
    call_pipeline,
    call_with_references,
    load_pipeline,
    load_quantized_pipeline,
    load_reference_pipeline,
)
from benchmarks.fixtures.small_controls import build_controlnet, save_control, save_small_ip_adapter
from benchmarks.fixtures.small_pipelines import INPAINTING_BUILDERS, PIPELINE_BUILDERS, save_small_pipeline
from benchmarks.fixtures.wide_pipelines import WIDE_BUILDERS, save_pipeline
from benchmarks.models.memory_run import count_stored_bytes
from benchmarks.report.figure_row import FigureRow, describe_error, print_progress
from benchmarks.report.measures import psnr
from engine import models
from engine.contract import ControlImage, Dtype, ImageToImage, InitImage, Quantization, Recipe, ReferenceImage, Sampler
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.family import TORCH_DTYPES, Family, HasDefaultSampling
from engine.models.files.added_kind import CONTROL_FOLDER
from engine.models.files.model_source import ModelSource
from engine.models.generic_family import GenericFamily
from engine.models.loading.memory_estimate import InspectedModel
from engine.models.loading.pipeline_loader import FormatChooser
from engine.models.quantization import PartQuantization, find_obstacle, find_quantization
from engine.sampling import build_scheduler

STEPS = 4
IMAGE_SIDE = 64
GUIDANCE = 4.0
SEED = 3
PREFERRED_SAMPLERS: tuple[Sampler, ...] = ("euler", "dpmpp_2m")
PARITY_GOAL = "≤ 1e-4"


def measure_parity_rows(device: torch.device, kinds: tuple[str, ...] = ()) -> list[FigureRow]:
    """Return one row for each kind; all kinds if none is named."""
    rows = list[FigureRow]()
    with tempfile.TemporaryDirectory(prefix="darkroom-report-") as folder:
        for kind in kinds or tuple(PIPELINE_BUILDERS):
            print_progress(f"parity of {kind}")
            try:
                rows.append(_measure_kind(kind, Path(folder) / kind, device))
            except Exception as error:  # the report is for finding kinds that fail here; the others go on
                name = f"{kind}: latents against the pipeline"
                rows.append(FigureRow(name, None, PARITY_GOAL, "", describe_error(error)))
    return rows


def _measure_kind(kind: str, folder: Path, device: torch.device) -> FigureRow:
    save_small_pipeline(kind, folder)
    family = models.load_folder(str(folder), kind, device)
    pipeline = load_pipeline(folder, device)
    pipeline_class = type(pipeline).__name__
    if isinstance(family, GenericFamily):  # the pipeline's own call draws its pictures
        engine_result = family.finish(run_engine(family, make_recipe(family, "native")))
        likeness = psnr(engine_result, _call_pipeline_unchanged(pipeline, family))
        return FigureRow(f"{kind}: picture against {pipeline_class}", likeness, "≥ 60", "dB")
    recipe = make_recipe(family, _choose_sampler(family))
    difference = measure_difference(run_engine(family, recipe), call_pipeline(pipeline, family, recipe)[0])
    if not math.isfinite(difference):
        raise RuntimeError("the latents are not finite")
    note = f"float32, {STEPS} steps of {recipe.sampler}"
    return FigureRow(f"{kind}: latents against {pipeline_class}", difference, PARITY_GOAL, "", note)


def _choose_sampler(family: Family) -> Sampler:
    """Choose the model's own sampler if it has one, as latent consistency does."""
    default_sampling = family.default_sampling if isinstance(family, HasDefaultSampling) else None
    candidates = (*((default_sampling[1],) if default_sampling else ()), *PREFERRED_SAMPLERS, *family.samplers)
    return next(sampler for sampler in candidates if sampler in family.samplers)


def make_recipe(family: Family, sampler: Sampler, dtype: Dtype = "float32", **fields: Any) -> Recipe:
    """Return a recipe of one picture: of several, the one that ends first need not be the first one."""
    values: dict[str, Any] = {"steps": STEPS, "seed": SEED, "guidance": GUIDANCE, "dtype": dtype}
    values |= {"width": IMAGE_SIDE, "height": IMAGE_SIDE, "quantization": find_quantization(family)}
    return make_family_recipe(family, "a cat", sampler=sampler, **(values | fields))


def measure_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of latents of one shape, relative to the largest expected one above 1."""
    return float((actual - expected).abs().max()) / max(1.0, float(expected.abs().max()))


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


CONTROLS = (("one", 0.6, 0.0, 0.75), ("two", 1.2, 0.25, 1.0))  # name, scale, start, stop
PIPELINES = {"sd": "StableDiffusionControlNetPipeline", "sdxl": "StableDiffusionXLControlNetPipeline"}


def measure_control_rows(device: torch.device) -> list[FigureRow]:
    """Return one row for each kind of model with two ControlNets."""
    return [
        _measure_row(
            f"{kind}: latents with two ControlNets against {pipeline_class}",
            f"float32, {STEPS} steps of ddim",
            partial(_compare_controlled, kind, device),
        )
        for kind, pipeline_class in PIPELINES.items()
    ]


def _measure_row(name: str, note: str, compare: Callable[[Path], float]) -> FigureRow:
    """Return the row of a comparison, which gets a folder of its own; if it fails, the row says so."""
    print_progress(f"parity of {name}")
    try:
        with tempfile.TemporaryDirectory(prefix="darkroom-report-") as folder:
            return FigureRow(name, compare(Path(folder)), PARITY_GOAL, "", note)
    except Exception as error:  # the report is for finding what fails here; the others go on
        return FigureRow(name, None, PARITY_GOAL, "", describe_error(error))


def _compare_controlled(kind: str, device: torch.device, data: Path) -> float:
    """Return the largest difference; above 1 relative to the largest latent."""
    diffusers: Any = import_module("diffusers")
    save_small_pipeline(kind, data / "models" / kind)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(data / "models" / kind)
    for seed, (name, *_) in enumerate(CONTROLS, 1):
        save_control(build_controlnet(pipeline, seed), data / CONTROL_FOLDER / name)
    family = models.load_model(kind, data, device=device)
    picture = Image.linear_gradient("L").resize((IMAGE_SIDE, IMAGE_SIDE)).convert("RGB")
    (sha256,), blobs = name_blobs(picture)
    controls = tuple(ControlImage(name, sha256, "none", scale, start, stop) for name, scale, start, stop in CONTROLS)
    actual = run_engine(family, make_recipe(family, "ddim", controls=controls), blobs)
    networks = [diffusers.ControlNetModel.from_pretrained(data / CONTROL_FOLDER / name) for name, *_ in CONTROLS]
    controlled = getattr(diffusers, PIPELINES[kind])(**pipeline.components, controlnet=networks).to(device)
    controlled.scheduler = build_scheduler(cast(Any, family).scheduler_config, "ddim")
    controlled.set_progress_bar_config(disable=True)
    scales, starts, stops = ([control[place] for control in CONTROLS] for place in (1, 2, 3))
    expected = controlled(
        "a cat",
        negative_prompt=None,
        image=[picture] * len(CONTROLS),
        num_inference_steps=STEPS,
        width=IMAGE_SIDE,
        height=IMAGE_SIDE,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
        controlnet_conditioning_scale=scales,
        control_guidance_start=starts,
        control_guidance_end=stops,
    ).images[0]
    return measure_difference(actual, expected)


SCALE = 0.7
REFERENCES = (("sd", "plain"), ("sdxl", "plus"))
REFERENCE_NOTE = f"latents against diffusers, float32, {STEPS} steps of euler"


def measure_picture_rows(device: torch.device) -> list[FigureRow]:
    """Return one row for each kind of adapter and of inpainting model."""
    comparisons: dict[str, Callable[[Path], float]] = {
        f"{kind}: a reference picture, {adapter}": partial(_compare_reference, kind, adapter, device)
        for kind, adapter in REFERENCES
    }
    comparisons |= {
        f"{kind}: a masked picture": partial(_compare_inpainting, kind, device) for kind in INPAINTING_BUILDERS
    }
    return [_measure_row(name, REFERENCE_NOTE, compare) for name, compare in comparisons.items()]


def _compare_reference(kind: str, adapter: str, device: torch.device, data: Path) -> float:
    save_small_pipeline(kind, data / kind)
    family: Any = models.load_model(str(data / kind), data, device=device)
    adapter_folder = data / "ip-adapters" / f"{kind}-{adapter}"
    save_small_ip_adapter(adapter_folder, family.pipeline.unet, is_plus=adapter == "plus")
    (sha256,), blobs = name_blobs(_draw_beside())
    recipe = make_recipe(family, "euler", references=(ReferenceImage(adapter_folder.name, sha256, SCALE),))
    pipeline = load_reference_pipeline(data / kind, [adapter_folder], device)
    expected = call_with_references(pipeline, family, recipe, blobs)
    return measure_difference(run_engine(family, recipe, blobs), expected)


def _compare_inpainting(kind: str, device: torch.device, data: Path) -> float:
    save_small_pipeline(kind, data / kind)
    family: Any = models.load_model(str(data / kind), data, device=device)
    mask = Image.new("L", (IMAGE_SIDE, IMAGE_SIDE), 0)
    ImageDraw.Draw(mask).ellipse((8, 16, 48, 56), fill=255)
    (sha256, mask_sha256), blobs = name_blobs(_draw_beside(), mask)
    recipe = make_recipe(family, "euler", start=ImageToImage((InitImage(sha256),), 1.0, mask_sha256))
    expected = call_inpainting(load_pipeline(data / kind, device), family, recipe, blobs)
    return measure_difference(run_engine(family, recipe, blobs), expected)


def _draw_beside() -> Image.Image:
    picture = Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), "teal")
    ImageDraw.Draw(picture).rectangle((20, 8, 40, 60), fill="orange")
    return picture
    return picture


QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "float8", "int4", "nf4")
PREDICTION_GOAL = "≤ 1.11"


def measure_quantization_rows(device: torch.device, kinds: tuple[str, ...] = tuple(WIDE_BUILDERS)) -> list[FigureRow]:
    """Return two rows for each kind and quantisation; what this device lacks, or what fails, says so."""
    rows = list[FigureRow]()
    with tempfile.TemporaryDirectory(prefix="darkroom-report-") as temp_folder:
        for kind in kinds:
            save_pipeline(kind, Path(temp_folder) / kind)
            for quantization in QUANTIZATIONS:
                print_progress(f"{kind} as {quantization}")
                rows += _measure_quantization(kind, quantization, Path(temp_folder) / kind, device)
    return rows


def _measure_quantization(
    kind: str, quantization: Quantization, folder: Path, device: torch.device
) -> Iterator[FigureRow]:
    parity_name = f"{kind} as {quantization}: latents against the pipeline"
    bytes_name = f"{kind} as {quantization}: bytes of the weights, predicted and measured, the larger ÷ the smaller"
    if obstacle := find_obstacle(quantization, device):
        yield from (FigureRow(name, None, None, "", obstacle) for name in (parity_name, bytes_name))
        return
    # all that its kernel has
    dtype: Dtype = "bfloat16" if quantization == "int4" and device.type == "cuda" else "float32"
    try:
        both = PartQuantization(quantization, quantization)
        family = models.load_folder(str(folder), kind, device, quantization=both)
        assert isinstance(family, DiffusersFamily)
        family.get_network(dtype)
        yield _compare_latents(parity_name, family, folder, dtype)
        yield _compare_bytes(bytes_name, family, folder, dtype)
    except Exception as error:  # the report is for finding what fails here; the others go on
        yield FigureRow(parity_name, None, PARITY_GOAL, "", describe_error(error))


def _compare_latents(name: str, family: DiffusersFamily, folder: Path, dtype: Dtype) -> FigureRow:
    quantization = PartQuantization(family.quantization, family.quantization)
    pipeline = load_quantized_pipeline(folder, quantization, family.device.type, TORCH_DTYPES[dtype])
    recipe = make_recipe(family, "euler", dtype)
    ours = run_engine(family, recipe)
    theirs = call_pipeline(pipeline, family, recipe)[0].float()
    difference = measure_difference(ours, theirs)
    # The pipeline keeps its latents in the network's format, the engine in float32: only float32 can be compared.
    return FigureRow(name, difference, PARITY_GOAL if dtype == "float32" else None, "", f"computed in {dtype}")


def _compare_bytes(name: str, family: DiffusersFamily, folder: Path, dtype: Dtype) -> FigureRow:
    quantization = PartQuantization(family.quantization, family.quantization)
    inspected = InspectedModel.from_source(ModelSource(folder.name, folder))
    predicted = inspected.count_bytes_by_format(FormatChooser(family.device, quantization=quantization))[dtype]
    ratio = predicted / count_stored_bytes(family.pipeline)
    return FigureRow(name, max(ratio, 1 / ratio), PREDICTION_GOAL, "×", f"predicted {predicted / 1e6:.2f} MB")
