"""How long a picture takes on this machine, what the super-resolver does to an edge, and how large the weights are."""

from __future__ import annotations

import time

import numpy as np
from PIL import Image

from engine.alone import develop
from engine.bench.row import Row
from engine.job import Concept, Job, Recipe, Sampler, Share
from engine.training.evaluate import goals
from engine.training.evaluate.measures import overshoot
from engine.training.evaluate.scene import Scene

PROMPT = "red apple, white background"
LOW, HIGH = 64, 192  # two greys clear of clipping
MEGA = 1e6


def grids(scene: Scene) -> list[Row]:
    """Four pictures of one prompt, from the recipe to four finished PNGs."""
    _grid(scene, 2, "dpmpp_2m")  # warm
    family = scene.painter.family
    note = f"in {scene.painter.dtype}; finals {family.size * family.enlargement} px a side"
    return [
        goals.GRID_1000.row(_grid(scene, 1000, "ddpm"), note),
        goals.GRID_30.row(_grid(scene, 30, "dpmpp_2m"), note),
    ]


def enlarging(scene: Scene) -> list[Row]:
    """The super-resolver on a picture of the model's size, and on a step between two greys, upright and lying."""
    resolver, size = scene.resolver, scene.painter.family.size
    chart = np.full((size, size, 3), LOW, dtype=np.uint8)
    chart[:, size // 2 :] = HIGH
    charts = [Image.fromarray(chart), Image.fromarray(np.ascontiguousarray(chart.transpose(1, 0, 2)))]
    worst = max(overshoot(np.asarray(resolver.enlarge(one)), LOW, HIGH) for one in charts)
    began = time.perf_counter()
    large = resolver.enlarge(charts[0])
    seconds = time.perf_counter() - began
    return [
        goals.ENLARGED.row(seconds, f"{size} to {large.width} px a side"),
        goals.OVERSHOOT.row(worst, f"a step from {LOW} to {HIGH}"),
    ]


def sizes(scene: Scene) -> list[Row]:
    """Of the model's folder, in millions of bytes."""
    files = {path: path.stat().st_size / MEGA for path in scene.weights.rglob("*.safetensors")}
    if not files:
        raise ValueError("The model's folder has no weights in safetensors.")
    largest = max(files, key=lambda path: files[path])
    return [
        goals.ALL_WEIGHTS.row(sum(files.values()), f"{len(files)} files"),
        goals.LARGEST.row(files[largest], str(largest.relative_to(scene.weights))),
    ]


def _grid(scene: Scene, steps: int, sampler: Sampler) -> float:
    """Seconds."""
    family, dtype = scene.painter.family, scene.painter.dtype
    recipe = Recipe(
        concepts=(Concept(PROMPT),), model=family.name, sampler=sampler, steps=steps, seed=scene.seed,
        guidance=family.guidance, width=family.size, height=family.size, count=4, dtype=dtype,
    )  # fmt: skip
    share = Share(tier="standard", guild="local", user="local", weight=1.0)
    job = Job(id=f"{1:026}", task=recipe, share=share, cost=1.0, deadline=2e9)
    return develop(job, {family.name: family}).seconds
