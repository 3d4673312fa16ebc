"""Loads the objects of the evaluation from folders: model, judge, artwork, super-resolver. It measures nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from engine.calibration.calibration import calibrate
from engine.models.families.embedded import load_embedded
from engine.models.judge import LabelJudge, load_judge
from engine.process.model_words import WEIGHTS_FOLDER, read_style_guide
from engine.upscaling.super_resolver import SuperResolver
from training.evaluation.context import EvaluationContext, SampleSizes
from training.evaluation.picture_sampler import PictureSampler
from training.pictures.artwork import Artwork

UPSCALER_FILE = Path("upscaler") / "model.safetensors"


def open_context(
    weights: Path,
    judge_folder: Path,
    load_artwork: Callable[[], Sequence[Artwork]],
    load_lemmas: Callable[[], Mapping[str, frozenset[str]]],
    sizes: SampleSizes,
    seed: int,
    style: str,
    on_progress: Callable[[int, int], None],
) -> EvaluationContext:
    """Create the context from folders; a check loads what it needs on first use."""
    return EvaluationContext(
        weights,
        lambda: replace(load_sampler(weights), on_progress=on_progress),
        lambda: _load_judge(judge_folder),
        load_artwork,
        lambda: _load_resolver(weights),
        load_lemmas,
        sizes,
        seed,
        style,
    )


def load_sampler(weights: Path) -> PictureSampler:
    """Load a folder's model as the engine would run it here, in the fastest number format."""
    family = load_embedded(weights=weights, resolver=SuperResolver.load(find_upscaler(weights)))
    with tempfile.TemporaryDirectory() as temp_folder, torch.inference_mode():
        dtype = calibrate(family, Path(temp_folder) / "calibration.json").dtype
    return PictureSampler(family, dtype, style_guide=read_style_guide(weights))


def _load_judge(folder: Path) -> LabelJudge:
    try:
        return load_judge(folder)
    except FileNotFoundError:
        raise ValueError("The judge's weights are not there: `darkroom train judge` makes them.") from None


def _load_resolver(weights: Path) -> SuperResolver:
    resolver = SuperResolver.load(find_upscaler(weights))
    if resolver is None:
        raise ValueError("The super-resolver's weights are not there: `darkroom train upscaler` makes them.")
    return resolver


def find_upscaler(weights: Path) -> Path | None:
    """Return the path of the model's own super-resolver; None for the built-in one."""
    upscaler_path = weights / UPSCALER_FILE
    return upscaler_path if upscaler_path.is_file() and weights != WEIGHTS_FOLDER else None
