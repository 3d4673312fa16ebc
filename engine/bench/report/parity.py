"""Parity of every kind of model, small and random, with its unmodified pipeline on the same device."""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from engine import families
from engine.bench.oracle import call_pipeline, make_job
from engine.bench.row import Row
from engine.bench.small_models import KINDS, build
from engine.engine import Developed, Engine, Failed
from engine.families.coalesced import Coalesced
from engine.families.family import Accustomed, Family
from engine.job import Concept, Recipe, Sampler

STEPS, SIDE, GUIDANCE, SEED = 4, 64, 4.0, 3
PREFERRED: tuple[Sampler, ...] = ("euler", "dpmpp_2m")
EQUAL = 120.0  # dB for two equal pictures


def parity_rows(device: torch.device, say: Callable[[str], None], kinds: tuple[str, ...] = ()) -> list[Row]:
    """Return one row for each kind; all kinds if none is named."""
    with tempfile.TemporaryDirectory(prefix="darkroom-report-") as scratch:
        return list(_rows(Path(scratch), device, say, kinds or tuple(KINDS)))


def _rows(scratch: Path, device: torch.device, say: Callable[[str], None], kinds: tuple[str, ...]) -> Iterator[Row]:
    for kind in kinds:
        say(f"parity of {kind}")
        try:
            yield _row(kind, scratch / kind, device)
        except Exception as error:  # the report is for finding kinds that fail here; the others go on
            note = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            yield Row(f"{kind}: latents against the pipeline", None, "≤ 1e-4", "", note)


def _row(kind: str, folder: Path, device: torch.device) -> Row:
    build(kind, folder)
    family = families.load_folder(str(folder), kind, device)
    pipeline = import_module("diffusers").DiffusionPipeline.from_pretrained(folder).to(device)
    pipeline.set_progress_bar_config(disable=True)
    name = type(pipeline).__name__
    if isinstance(family, Coalesced):  # the pipeline's own call draws its pictures
        ours, theirs = _finish(family, _recipe(family, "native")), _call_as_it_is(pipeline, family)
        return Row(f"{kind}: picture against {name}", _psnr(ours, theirs), "≥ 60", "dB")
    recipe = _recipe(family, _sampler(family))
    ours, theirs = _latents(family, recipe), call_pipeline(pipeline, family, recipe)[0]
    error = float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))
    return Row(f"{kind}: latents against {name}", error, "≤ 1e-4", "", f"float32, {STEPS} steps of {recipe.sampler}")


def _sampler(family: Family) -> Sampler:
    """Choose the model's own sampler if it has one, as latent consistency does."""
    usual = family.usual if isinstance(family, Accustomed) else None
    wanted = (*((usual[1],) if usual else ()), *PREFERRED, *family.samplers)
    return next(each for each in wanted if each in family.samplers)


def _recipe(family: Family, sampler: Sampler) -> Recipe:
    return Recipe(
        concepts=(Concept("a cat"),), model=family.name, sampler=sampler, steps=STEPS, seed=SEED, guidance=GUIDANCE,
        width=SIDE, height=SIDE, dtype="float32", guides=family.guides,
    )  # fmt: skip


def _latents(family: Family, recipe: Recipe) -> torch.Tensor:
    engine = Engine({family.name: family})
    try:
        engine.add(make_job(recipe))
        while not engine.idle:
            for event in engine.step():
                if isinstance(event, Failed):
                    raise RuntimeError(event.reason)
                if isinstance(event, Developed):
                    return event.latents
    finally:
        engine.close()
    raise RuntimeError("the engine ended without latents")


def _finish(family: Family, recipe: Recipe) -> Image.Image:
    return family.finish(_latents(family, recipe))


def _call_as_it_is(pipeline: Any, family: Coalesced) -> Image.Image:
    """Call the pipeline with its own scheduler. Its guidance may count from 0 where ours counts from 1."""
    takes = inspect.signature(type(pipeline).__call__).parameters
    more = {name: False for name in ("use_resolution_binning", "clean_caption") if name in takes}
    return pipeline(
        "a cat", negative_prompt="", num_inference_steps=STEPS, guidance_scale=GUIDANCE - 1 + family.no_guidance,
        width=SIDE, height=SIDE, generator=torch.Generator().manual_seed(SEED), **more,
    ).images[0]  # fmt: skip


def _psnr(a: Image.Image, b: Image.Image) -> float:
    error = float(((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2).mean())
    return 10 * math.log10(255**2 / error) if error else EQUAL
