"""Loads the objects of the evaluation from folders: model, judge, artwork, super-resolver. Knows no measure."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from engine.calibration import calibrate
from engine.families.embedded import WEIGHTS, load_embedded
from engine.super_resolver import SuperResolver
from engine.training.evaluate.draw import Painter
from engine.training.evaluate.judge import LabelJudge, open_judge
from engine.training.evaluate.scene import Scene, Sizes
from engine.training.pictures.artwork import Artwork

UPSCALER = Path("upscaler") / "model.safetensors"


def open_scene(
    weights: Path,
    judge: Path,
    artwork: Callable[[], Sequence[Artwork]],
    sizes: Sizes,
    seed: int,
    told: Callable[[int, int], None],
) -> Scene:
    """Create the scene from folders; a check loads what it needs on first use."""
    return Scene(
        weights, lambda: replace(painter(weights), told=told), lambda: _judge(judge), artwork,
        lambda: _resolver(weights), sizes, seed,
    )  # fmt: skip


def painter(weights: Path) -> Painter:
    """Load a folder's model as the engine would run it here, in the fastest number format."""
    family = load_embedded(weights=weights, resolver=SuperResolver.find(_upscaler(weights)))
    with tempfile.TemporaryDirectory() as fresh, torch.inference_mode():
        return Painter(family, calibrate(family, Path(fresh) / "calibration.json").dtype)


def _judge(folder: Path) -> LabelJudge:
    try:
        return open_judge(folder)
    except FileNotFoundError:
        raise ValueError("The judge's weights are not there: `darkroom train judge` makes them.") from None


def _resolver(weights: Path) -> SuperResolver:
    found = SuperResolver.find(_upscaler(weights))
    if found is None:
        raise ValueError("The super-resolver's weights are not there: `darkroom train upscaler` makes them.")
    return found


def _upscaler(weights: Path) -> Path | None:
    """Return the path of the model's own super-resolver; None for the built-in one."""
    own = weights / UPSCALER
    return own if own.is_file() and weights != WEIGHTS else None
