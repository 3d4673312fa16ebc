"""Parity of control pictures: two small ControlNets against diffusers' own pipeline on the same device."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from benchmarks.fixtures.small_controls import build_controlnet, save_control
from benchmarks.fixtures.small_pipelines import save_small_pipeline
from benchmarks.gpu_report.pipeline_parity import run_engine
from benchmarks.report.errors import describe_error
from benchmarks.report.figure_row import FigureRow
from engine import models
from engine.contract import Concept, ControlImage, Recipe
from engine.models.family import Family
from engine.models.files.data_folders import CONTROL_FOLDER
from engine.sampling import build_scheduler

STEPS = 4
IMAGE_SIDE = 64
GUIDANCE = 4.0
SEED = 3
CONTROLS = (("one", 0.6, 0.0, 0.75), ("two", 1.2, 0.25, 1.0))  # name, scale, start, stop
PIPELINES = {"sd": "StableDiffusionControlNetPipeline", "sdxl": "StableDiffusionXLControlNetPipeline"}


def measure_control_rows(device: torch.device, print_progress: Callable[[str], None]) -> list[FigureRow]:
    """Return one row for each kind of model."""
    rows: list[FigureRow] = []
    for kind, pipeline_class in PIPELINES.items():
        print_progress(f"parity of {kind} with ControlNets")
        name = f"{kind}: latents with two ControlNets against {pipeline_class}"
        try:
            with tempfile.TemporaryDirectory(prefix="darkroom-report-") as folder:
                figure = _measure_kind(kind, Path(folder), device)
            rows.append(FigureRow(name, figure, "≤ 1e-4", "", f"float32, {STEPS} steps of ddim"))
        except Exception as error:  # the report is for finding kinds that fail here; the others go on
            rows.append(FigureRow(name, None, "≤ 1e-4", "", describe_error(error)))
    return rows


def _measure_kind(kind: str, data: Path, device: torch.device) -> float:
    """Return the largest difference; above 1 relative to the largest latent."""
    diffusers: Any = import_module("diffusers")
    save_small_pipeline(kind, data / "models" / kind)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(data / "models" / kind)
    for seed, (name, *_) in enumerate(CONTROLS, 1):
        save_control(build_controlnet(pipeline, seed), data / CONTROL_FOLDER / name)
    family = models.load_model(kind, data, device=device)
    picture = Image.linear_gradient("L").resize((IMAGE_SIDE, IMAGE_SIDE)).convert("RGB")
    content = BytesIO()
    picture.save(content, "PNG")
    actual = _draw_controlled(family, content.getvalue())
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
    return float((actual - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def _draw_controlled(family: Family, picture: bytes) -> torch.Tensor:
    sha256 = hashlib.sha256(picture).hexdigest()
    recipe = Recipe(
        concepts=(Concept("a cat"),),
        model=family.name,
        sampler="ddim",
        steps=STEPS,
        seed=SEED,
        guidance=GUIDANCE,
        width=IMAGE_SIDE,
        height=IMAGE_SIDE,
        dtype="float32",
        guidance_kind=family.guides,
        count=1,
        controls=tuple(ControlImage(name, sha256, "none", scale, start, stop) for name, scale, start, stop in CONTROLS),
    )
    return run_engine(family, recipe, {sha256: picture})
