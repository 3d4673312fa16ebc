"""Parity of reference pictures and inpainting models, small and random, with the unmodified pipelines on a device."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from benchmarks.fixtures.picture_pipelines import call_inpainting, call_with_references, load_reference_pipeline
from benchmarks.fixtures.small_ip_adapters import save_small_ip_adapter
from benchmarks.fixtures.small_pipelines import INPAINTING_BUILDERS, save_small_pipeline
from benchmarks.gpu_report.pipeline_parity import run_engine
from benchmarks.report.errors import describe_error
from benchmarks.report.figure_row import FigureRow
from engine import models
from engine.contract import Concept, ImageToImage, InitImage, Recipe, ReferenceImage
from engine.models.family import Family

STEPS = 4
IMAGE_SIDE = 64
GUIDANCE = 4.0
SEED = 3
SCALE = 0.7
REFERENCES = (("sd", "plain"), ("sdxl", "plus"))
PrintProgress = Callable[[str], None]


def measure_picture_rows(device: torch.device, print_progress: PrintProgress) -> list[FigureRow]:
    """Return one row for each kind of adapter and of inpainting model."""
    with tempfile.TemporaryDirectory(prefix="darkroom-report-") as temp_folder:
        return list(_measure_rows(Path(temp_folder), device, print_progress))


def _measure_rows(folder: Path, device: torch.device, print_progress: PrintProgress) -> Iterator[FigureRow]:
    for kind, adapter in REFERENCES:
        yield _measure_row(
            f"{kind}: a reference picture, {adapter}",
            partial(_compare_reference, folder, kind, adapter, device),
            print_progress,
        )
    for kind in INPAINTING_BUILDERS:
        yield _measure_row(
            f"{kind}: a masked picture", partial(_compare_inpainting, folder, kind, device), print_progress
        )


def _measure_row(name: str, compare: Callable[[], float], print_progress: PrintProgress) -> FigureRow:
    print_progress(f"parity of {name}")
    try:
        note = f"latents against diffusers, float32, {STEPS} steps of euler"
        return FigureRow(name, compare(), "≤ 1e-4", "", note)
    except Exception as error:  # the report is for finding what fails here; the others go on
        return FigureRow(name, None, "≤ 1e-4", "", describe_error(error))


def _compare_reference(data: Path, kind: str, adapter: str, device: torch.device) -> float:
    save_small_pipeline(kind, data / kind)
    family: Any = models.load_model(str(data / kind), data, device=device)
    adapter_folder = data / "ip-adapters" / f"{kind}-{adapter}"
    save_small_ip_adapter(adapter_folder, family.pipeline.unet, is_plus=adapter == "plus")
    (sha256,), blobs = _store(_draw_picture())
    recipe = _make_recipe(family, references=(ReferenceImage(adapter_folder.name, sha256, SCALE),))
    pipeline = load_reference_pipeline(data / kind, [adapter_folder], device)
    return _compare(family, recipe, blobs, call_with_references(pipeline, family, recipe, blobs))


def _compare_inpainting(data: Path, kind: str, device: torch.device) -> float:
    save_small_pipeline(kind, data / kind)
    family: Any = models.load_model(str(data / kind), data, device=device)
    mask = Image.new("L", (IMAGE_SIDE, IMAGE_SIDE), 0)
    ImageDraw.Draw(mask).ellipse((8, 16, 48, 56), fill=255)
    (sha256, mask_sha256), blobs = _store(_draw_picture(), mask)
    recipe = _make_recipe(family, start=ImageToImage((InitImage(sha256),), 1.0, mask_sha256))
    pipeline = import_module("diffusers").DiffusionPipeline.from_pretrained(data / kind).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return _compare(family, recipe, blobs, call_inpainting(pipeline, family, recipe, blobs))


def _make_recipe(family: Family, **fields: Any) -> Recipe:
    return Recipe(
        concepts=(Concept("a cat"),),
        model=family.name,
        sampler="euler",
        steps=STEPS,
        seed=SEED,
        guidance=GUIDANCE,
        width=IMAGE_SIDE,
        height=IMAGE_SIDE,
        dtype="float32",
        guidance_kind=family.guides,
        count=1,
        **fields,
    )


def _compare(family: Family, recipe: Recipe, blobs: Mapping[str, bytes], expected: torch.Tensor) -> float:
    """Return the largest difference from the expected latents, relative to the largest of them above 1."""
    difference = (run_engine(family, recipe, blobs) - expected).abs().max()
    return float(difference) / max(1.0, float(expected.abs().max()))


def _draw_picture() -> Image.Image:
    picture = Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), "teal")
    ImageDraw.Draw(picture).rectangle((20, 8, 40, 60), fill="orange")
    return picture


def _store(*pictures: Image.Image) -> tuple[list[str], dict[str, bytes]]:
    """Return the SHA-256 of each picture as a PNG, and the blobs."""
    contents: list[bytes] = []
    for picture in pictures:
        buffer = BytesIO()
        picture.save(buffer, format="PNG")
        contents.append(buffer.getvalue())
    names = [hashlib.sha256(content).hexdigest() for content in contents]
    return names, dict(zip(names, contents, strict=True))
