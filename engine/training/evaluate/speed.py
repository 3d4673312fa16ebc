"""Measures generation time, the super-resolver's time and overshoot, and the size of the weights."""

from __future__ import annotations

import time
from pathlib import Path

from PIL import Image

from engine.alone import develop
from engine.bench.row import Row
from engine.job import Concept, Job, Recipe, Sampler, Share
from engine.training.evaluate import goals
from engine.training.evaluate.edges import overshoots
from engine.training.evaluate.scene import Scene
from engine.training.run import CHECKPOINT

PROMPT = "red apple, white background"
MEGA = 1e6


def grids(scene: Scene) -> list[Row]:
    """Time four pictures of one prompt, from the recipe to four finished PNGs."""
    _grid(scene, 2, "dpmpp_2m")  # warm
    family = scene.painter.family
    note = f"in {scene.painter.dtype}; finals {family.size * family.enlargement} px a side"
    return [
        goals.GRID_1000.row(_grid(scene, 1000, "ddpm"), note),
        goals.GRID_30.row(_grid(scene, 30, "dpmpp_2m"), note),
    ]


def enlarging(scene: Scene) -> list[Row]:
    """Time the super-resolver on a picture of the model's size, and measure its overshoot on edge charts."""
    resolver, size = scene.resolver, scene.painter.family.size
    beyond = overshoots(resolver.enlarge)
    worst = max(beyond, key=lambda name: beyond[name])
    straight = max(value for name, value in beyond.items() if "upright" in name or "lying" in name)
    began = time.perf_counter()
    large = resolver.enlarge(Image.new("RGB", (size, size), "grey"))
    seconds = time.perf_counter() - began
    said = f"of {len(beyond)} charts: {worst}; where the edge is upright or lying at most {straight:g}"
    return [
        goals.ENLARGED.row(seconds, f"{size} to {large.width} px a side"),
        goals.OVERSHOOT.row(beyond[worst], said),
    ]


def sizes(scene: Scene) -> list[Row]:
    """Measure the model's folder in millions of bytes: the weights that it runs with, no files of a training run."""
    files = {path: path.stat().st_size / MEGA for path in scene.weights.rglob("*.safetensors") if _counts(path, scene)}
    if not files:
        raise ValueError("The model's folder has no weights in safetensors.")
    largest = max(files, key=lambda path: files[path])
    return [
        goals.ALL_WEIGHTS.row(sum(files.values()), f"{len(files)} files, without the text encoder"),
        goals.LARGEST.row(files[largest], str(largest.relative_to(scene.weights))),
    ]


def _counts(path: Path, scene: Scene) -> bool:
    """Exclude a run's checkpoints, and the text encoder, which the embedded model takes from a package."""
    inside = path.relative_to(scene.weights).parts
    return inside[0] not in ("run", "text_encoder") and path.name != CHECKPOINT


def _grid(scene: Scene, steps: int, sampler: Sampler) -> float:
    """Return the seconds."""
    family, dtype = scene.painter.family, scene.painter.dtype
    recipe = Recipe(
        concepts=(Concept(PROMPT),), model=family.name, sampler=sampler, steps=steps, seed=scene.seed,
        guidance=family.guidance, width=family.size, height=family.size, count=4, dtype=dtype,
    )  # fmt: skip
    share = Share(tier="standard", guild="local", user="local", weight=1.0)
    job = Job(id=f"{1:026}", task=recipe, share=share, cost=1.0, deadline=2e9)
    return develop(job, {family.name: family}).seconds
