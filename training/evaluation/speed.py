"""Measures generation time, the super-resolver's time and overshoot, and the size of the weights.

The overshoot is measured on edges between two greys, which vary in contrast and direction (vertical, horizontal,
slanting) and in place: on a pixel border and a quarter, a half and three quarters past it. Some charts have lines as
thin as one pixel. A network that was trained on one chart does not know the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.report.figure_row import FigureRow
from engine.contract import BillingKey, Concept, Job, Recipe, Sampler, count_usual_evaluations
from engine.worker.local_run import run_locally
from training.core.run import CHECKPOINT_FILE
from training.evaluation import goals
from training.evaluation.context import EvaluationContext
from training.evaluation.measures import overshoot

PROMPT = "red apple, white background"
MEGABYTE = 1e6


def check_grids(context: EvaluationContext) -> list[FigureRow]:
    """Time four pictures of one prompt, from the recipe to four finished PNGs."""
    _time_grid(context, 2, "dpmpp_2m")  # warm
    family = context.sampler.family
    note = f"in {context.sampler.dtype}; finals {family.size * family.upscale_factor} px a side"
    return [
        goals.GRID_1000_STEPS.make_row(_time_grid(context, 1000, "ddpm"), note),
        goals.GRID_30_STEPS.make_row(_time_grid(context, 30, "dpmpp_2m"), note),
        goals.GRID_4_STEPS.make_row(_time_grid(context, 4, "dpmpp_2m"), note),
    ]


def check_upscaling(context: EvaluationContext) -> list[FigureRow]:
    """Time the super-resolver on a picture of the model's size, and measure its overshoot on edge charts."""
    resolver = context.resolver
    size = context.sampler.family.size
    overshoots = measure_overshoots(resolver.upscale)
    worst_chart = max(overshoots, key=lambda name: overshoots[name])
    straight_overshoot = max(value for name, value in overshoots.items() if "upright" in name or "lying" in name)
    start_time = time.perf_counter()
    upscaled_picture = resolver.upscale(Image.new("RGB", (size, size), "grey"))
    seconds = time.perf_counter() - start_time
    note = f"of {len(overshoots)} charts: {worst_chart}; where the edge is upright or lying at most"
    return [
        goals.UPSCALE_TIME.make_row(seconds, f"{size} to {upscaled_picture.width} px a side"),
        goals.OVERSHOOT.make_row(overshoots[worst_chart], f"{note} {straight_overshoot:g}"),
    ]


def check_sizes(context: EvaluationContext) -> list[FigureRow]:
    """Measure the model's folder in millions of bytes: the weights that it runs with, no files of a training run."""
    paths = [path for path in context.weights.rglob("*.safetensors") if _is_model_weight(path, context)]
    file_sizes = {path: path.stat().st_size / MEGABYTE for path in paths}
    if not file_sizes:
        raise ValueError("The model's folder has no weights in safetensors.")
    largest = max(file_sizes, key=lambda path: file_sizes[path])
    return [
        goals.TOTAL_WEIGHTS.make_row(sum(file_sizes.values()), f"{len(file_sizes)} files, without the text encoder"),
        goals.LARGEST_FILE.make_row(file_sizes[largest], str(largest.relative_to(context.weights))),
    ]


def _is_model_weight(path: Path, context: EvaluationContext) -> bool:
    """Exclude a run's checkpoints, and the text encoder, which the embedded model takes from a package."""
    path_parts = path.relative_to(context.weights).parts
    return path_parts[0] not in ("run", "text_encoder") and path.name != CHECKPOINT_FILE


def _time_grid(context: EvaluationContext, steps: int, sampler: Sampler) -> float:
    """Return the seconds to the finished pictures, with guidance and evaluations where the bot has them by default."""
    family = context.sampler.family
    dtype = context.sampler.dtype
    recipe = Recipe(
        concepts=(Concept(PROMPT),),
        model=family.name,
        sampler=sampler,
        steps=steps,
        evaluations=count_usual_evaluations(sampler, steps),
        seed=context.seed,
        guidance=family.guidance,
        guidance_start=family.interval[0],
        guidance_stop=family.interval[1],
        width=family.size,
        height=family.size,
        count=4,
        dtype=dtype,
    )
    share = BillingKey(tier="standard", guild="local", user="local", weight=1.0)
    # a worker decodes the ladder's frames after it has sent the pictures
    job = Job(id=f"{1:026}", task=recipe, billing_key=share, cost=1.0, deadline=2e9, ladder=False)
    return run_locally(job, {family.name: family}).seconds


OVERSAMPLING = 4
GREY_LEVELS = ((64, 192), (96, 160), (112, 144))  # away from black and white, so that clipping does not hide overshoot
SIDE = 64

Upscale = Callable[[Image.Image], Image.Image]


def edge_charts(side: int = SIDE) -> Iterator[tuple[str, int, int, Image.Image]]:
    """Yield name, darker grey, lighter grey, and the chart: grey RGB, `side` px."""
    row_grid, column_grid = np.mgrid[: side * OVERSAMPLING, : side * OVERSAMPLING]
    middle = side // 2 * OVERSAMPLING
    patterns: dict[str, np.ndarray] = {}
    for name, grid in (("upright", column_grid), ("lying", row_grid)):
        patterns |= {f"{name}, {phase}/{OVERSAMPLING} px on": grid >= middle + phase for phase in range(OVERSAMPLING)}
    patterns |= {"slanting": column_grid + row_grid >= 2 * middle, "steep": 3 * column_grid + row_grid >= 4 * middle}
    patterns |= {
        "a line": (column_grid // OVERSAMPLING == side // 2),
        "a slanting line": abs(column_grid - row_grid) < OVERSAMPLING // 2,
    }
    for low, high in GREY_LEVELS:
        for name, light_mask in patterns.items():
            large = np.where(light_mask, high, low).astype(np.float64)
            small = large.reshape(side, OVERSAMPLING, side, OVERSAMPLING).mean(axis=(1, 3)).round().astype(np.uint8)
            yield f"{low} to {high}, {name}", low, high, Image.fromarray(small).convert("RGB")


def measure_overshoots(upscale: Upscale, stride: int = 1) -> dict[str, float]:
    """Return the overshoot by chart in steps of 255, for one chart in `stride`."""
    selected_charts = islice(edge_charts(), 0, None, stride)
    return {name: overshoot(np.asarray(upscale(chart)), low, high) for name, low, high, chart in selected_charts}
