"""All checks of the evaluation in order, with their rows. A check that cannot run fills its rows with the reason.

Here are those of speed and size, and those that compare pictures with real drawings: reconstruction, realism, seeds
that differ, memorisation. Those of prompts are in `prompt_adherence`.

The super-resolver's overshoot is measured on edges between two greys, which vary in contrast and direction (vertical,
horizontal, slanting) and in place: on a pixel border and a quarter, a half and three quarters past it. Some charts have
lines as thin as one pixel. A network that was trained on one chart does not know the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image

from benchmarks.report.figure_row import FigureRow
from engine.contract import BillingKey, Concept, Job, JobRejected, Recipe, Sampler, count_usual_evaluations
from engine.models.judge import as_images, resize_pictures
from engine.process.model_settings import WEIGHTS_FOLDER
from engine.worker.local_run import run_locally
from training.core.run import CHECKPOINT_FILE
from training.evaluation import goals
from training.evaluation.context import EvaluationContext
from training.evaluation.goals import Goal
from training.evaluation.measures import (
    find_nearest_drawings,
    frechet_distance,
    has_duplicates,
    masked_psnr,
    mean_distance,
    overshoot,
    percent_of_hits,
    shrink,
)
from training.evaluation.prompt_adherence import (
    check_backgrounds,
    check_guidance,
    check_held_out_lemmas,
    check_held_out_words,
    check_hues,
    check_labels,
)
from training.gan.losses import gradient_energy
from training.pictures.artwork import Artwork, is_held_out
from training.pictures.variants import FIRST_VALIDATION_NUMBER, OTHER_SCALES, render_posed, render_variant

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


UNKNOWN_TRAINING_NOTE = "held out if its autoencoder was trained with `darkroom train autoencoder`, else not known"


def check_reconstruction(context: EvaluationContext) -> list[FigureRow]:
    """Return the rows. Raises ValueError if the artwork is unavailable."""
    held_out = [drawing for drawing in context.artwork if is_held_out(drawing.key)]
    if not held_out:
        raise ValueError("None of the artwork is held out, so there is nothing to measure a reconstruction with.")
    real = np.stack([render_variant(drawing, FIRST_VALIDATION_NUMBER, context.seed).pixels for drawing in held_out])
    masks = np.stack([subject_mask(drawing, FIRST_VALIDATION_NUMBER, context.seed) for drawing in held_out])
    reconstructed = np.stack([_round_trip(context, picture) for picture in real])
    scores = masked_psnr(real, reconstructed, masks)
    training_note = "" if context.weights == WEIGHTS_FOLDER else f"; {UNKNOWN_TRAINING_NOTE}"
    counts = f"the mean of {len(scores)} of {len(held_out)} drawings"
    note = f"{counts}; their median is {float(scores.median()):.1f}{training_note}"
    return [
        goals.PSNR.make_row(float(scores.mean()), note),
        _ssim_row(real, reconstructed, f"{len(held_out)} drawings{training_note}"),
    ]


def subject_mask(drawing: Artwork, number: int, seed: int) -> np.ndarray:
    """Return a variant's subject, bool [h, w]: the pixels that follow the drawing's colour, black or white."""
    alpha = drawing.pixels.getchannel("A")
    silhouettes = [replace(drawing, pixels=_paint_silhouette(alpha, shade)) for shade in (255, 0)]
    in_white, in_black = (render_variant(each, number, seed).pixels[..., 0].astype(int) for each in silhouettes)
    return in_white - in_black > 127


def _paint_silhouette(alpha: Image.Image, shade: int) -> Image.Image:
    silhouette = Image.new("RGBA", alpha.size, (shade, shade, shade, 0))
    silhouette.putalpha(alpha)
    return silhouette


def _round_trip(context: EvaluationContext, picture: np.ndarray) -> np.ndarray:
    """Send a picture through the autoencoder and back, with the engine's code."""
    family = context.sampler.family
    return np.asarray(family.decode(family.encode_image(Image.fromarray(picture))).convert("RGB"))


def _ssim_row(real: np.ndarray, reconstructed: np.ndarray, note: str) -> FigureRow:
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim
    except ImportError:
        return goals.SSIM.make_row(None, "This needs torchmetrics: pip install 'darkroom-bot[train]'.")
    score = ssim(_to_tensor(reconstructed), _to_tensor(real), data_range=255.0)
    return goals.SSIM.make_row(float(torch.as_tensor(score[0] if isinstance(score, Sequence) else score)), note)


def _to_tensor(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).double()  # in fp32 a picture is 0.9995 like itself


def check_realism(context: EvaluationContext) -> list[FigureRow]:
    """Compare one picture of each label with real drawings of the same labels, on white."""
    return [_frechet_row(context), _gradient_row(context)]


def _frechet_row(context: EvaluationContext) -> FigureRow:
    """Measure the distance of the pictures from real drawings, and that of the real drawings from each other."""
    label_sample, (real_output, real_targets) = context.label_sample(), context.judge_on_white()
    drawn = label_sample.output.features
    real = real_output.features[torch.isin(real_targets, label_sample.targets)]
    distance = frechet_distance(drawn, real)
    halves_distance = frechet_distance(real[::2], real[1::2])  # the two drawings of each label take turns
    note = (
        f"{len(drawn)} pictures, {len(real)} renderings of real drawings; two halves of these, with a drawing of each "
        f"label, are {halves_distance:.2f} apart"
    )
    if len(drawn) <= drawn.size(1):
        note += f"; both are too large, because no more pictures than features ({drawn.size(1)}) were drawn"
    return goals.FRECHET.make_row(distance, note)


def _gradient_row(context: EvaluationContext) -> FigureRow:
    """Compare the gradients with those of all real drawings of the labels; beside it, with those of each style."""
    label_sample = context.label_sample()
    pictures = dict(zip(label_sample.labels, resize_pictures(label_sample.pictures), strict=True))
    drawings = [drawing for drawing in context.choose_drawings() if drawing.description.label in pictures]

    drawn_energy = {label: _measure_energy(picture) for label, picture in pictures.items()}
    energies = [
        (drawing.style, drawn_energy[drawing.description.label], _measure_energy(render_posed(drawing)))
        for drawing in drawings
    ]

    def divide(style: str | None = None) -> float:
        """Divide the drawn by the real energy, over the drawings of one style or of all."""
        drawn, real = zip(*(pair for each_style, *pair in energies if style in (None, each_style)), strict=True)
        return sum(drawn) / sum(real)

    by_style = ", ".join(f"{style} {divide(style):.2f}" for style in sorted({style for style, *_ in energies}))
    note = f"{len(pictures)} pictures, {len(drawings)} real drawings of the same labels and size; by style: {by_style}"
    return goals.GRADIENT_ENERGY.make_row(divide(), note)


def _measure_energy(picture: np.ndarray) -> float:
    return gradient_energy(as_images(np.stack([picture])))


SEEDS_PER_PROMPT = 4
LISTED_PROMPTS = 3


def check_seeds(context: EvaluationContext) -> list[FigureRow]:
    """Compare four seeds of some prompts in the judge's features, relative to different real drawings (1)."""
    labels = context.choose_labels(context.sizes.seed_groups, 3)
    prompts = [f"{label}, white background" for label in labels for _ in range(SEEDS_PER_PROMPT)]
    pictures = context.sampler.sample_pictures(prompts, range(len(prompts)))
    features = torch.unflatten(context.judge.judge_pictures(pictures).features, 0, (len(labels), SEEDS_PER_PROMPT))
    seed_distance = float(mean_distance(features).mean())
    groups = pictures.reshape(len(labels), SEEDS_PER_PROMPT, *pictures.shape[1:])
    has_duplicate = [has_duplicates(group) for group in groups]
    duplicate_labels = [label for label, is_duplicate in zip(labels, has_duplicate, strict=True) if is_duplicate]
    note = f"{len(labels)} prompts, {SEEDS_PER_PROMPT} seeds"
    more = " …" if len(duplicate_labels) > LISTED_PROMPTS else ""
    listed = f": {', '.join(duplicate_labels[:LISTED_PROMPTS])}{more}" if duplicate_labels else ""
    diversity_note = f"{note}; 1 would be as different as two drawings"
    return [
        goals.DIVERSITY.make_row(seed_distance / _drawing_distance(context), diversity_note),
        goals.SEEDS_ALIKE.make_row(percent_of_hits(has_duplicate), note + listed),
    ]


def check_memorisation(context: EvaluationContext) -> list[FigureRow]:
    """Count pictures as repetitions if they are nearer to a drawing than its own other renderings are."""
    label_sample = context.label_sample()
    artwork = context.artwork
    drawings = np.stack([render_posed(drawing) for drawing in artwork])
    limit = float(np.median(_rescaled_distances(artwork, drawings)))
    distances, index = find_nearest_drawings(label_sample.pictures, drawings)
    is_repeated = cast(list[bool], (distances < limit).tolist())
    nearest_labels = [artwork[int(i)].description.label for i in index]
    is_label_match = [nearest == label for nearest, label in zip(nearest_labels, label_sample.labels, strict=True)]
    note = (
        f"nearer to it than {limit:.1f} of 255, the median between two renderings of one drawing; the median of "
        f"{len(is_label_match)} pictures is {float(distances.median()):.1f}; the nearest drawing is the one that was "
        f"asked for in {percent_of_hits(is_label_match):.0f} %; of the drawings themselves, "
        f"{_percent_alike_drawings(artwork, drawings, limit):.0f} % are as near to one of another label"
    )
    return [goals.MEMORISED.make_row(percent_of_hits(is_repeated), note)]


def _rescaled_distances(artwork: Sequence[Artwork], drawings: np.ndarray) -> list[float]:
    """Return each drawing's distance from its own other renderings (RMS, in steps of 255)."""
    reference = shrink(drawings)
    distances: list[float] = []
    for scale in OTHER_SCALES:
        rescaled = shrink(np.stack([render_posed(drawing, scale) for drawing in artwork]))
        distances += (rescaled - reference).square().mean(dim=1).sqrt().tolist()
    return distances


def _percent_alike_drawings(artwork: Sequence[Artwork], drawings: np.ndarray, limit: float) -> float:
    """Return the percentage of labels whose drawing is nearer than `limit` to another label's, without any model."""
    labels = [drawing.description.label for drawing in artwork]
    label_numbers = {label: number for number, label in enumerate(sorted(set(labels)))}
    drawing_labels = torch.tensor([label_numbers[label] for label in labels])
    drawing_numbers = cast(list[int], drawing_labels.tolist())
    first_rows = torch.tensor([drawing_numbers.index(number) for number in range(len(label_numbers))])
    small_drawings = shrink(drawings)
    is_near: list[bool] = []
    for row_index in torch.split(first_rows, 256):
        distances = torch.cdist(small_drawings[row_index], small_drawings) / small_drawings.size(1) ** 0.5
        distances[drawing_labels[row_index][:, None] == drawing_labels[None]] = torch.inf
        is_near += (distances.min(dim=1).values < limit).tolist()
    return percent_of_hits(is_near)


def _drawing_distance(context: EvaluationContext) -> float:
    """Return the mean distance between real drawings of different labels, in the judge's features."""
    by_label = {drawing.description.label: drawing for drawing in context.artwork}
    rng = np.random.default_rng([context.seed, 4])
    sampled_labels = rng.choice(sorted(by_label), min(256, len(by_label)), replace=False)
    pictures = np.stack([render_posed(by_label[str(label)]) for label in sampled_labels])
    features = context.judge.judge_pictures(pictures).features
    return float(mean_distance(features[None]))


@dataclass(frozen=True)
class Check:
    """One check. `run` returns the rows of `goals`; its ValueError says in one sentence what is missing."""

    name: str
    goals: tuple[Goal, ...]
    run: Callable[[EvaluationContext], list[FigureRow]]


CHECKS = (
    Check("reconstruction", (goals.PSNR, goals.SSIM), check_reconstruction),
    Check("backgrounds", (goals.BACKGROUNDS,), check_backgrounds),
    Check("hues", (goals.HUES,), check_hues),
    Check("labels", goals.LABELS, check_labels),
    Check("words", (goals.WORDS, goals.WORDS_SHARE), check_held_out_words),
    Check("lemmas", (goals.LEMMAS,), check_held_out_lemmas),
    Check("realism", (goals.FRECHET, goals.GRADIENT_ENERGY), check_realism),
    Check("seeds", (goals.DIVERSITY, goals.SEEDS_ALIKE), check_seeds),
    Check("memories", (goals.MEMORISED,), check_memorisation),
    Check("guidance", goals.GUIDANCE_GOALS, check_guidance),
    Check("speed", (goals.GRID_1000_STEPS, goals.GRID_30_STEPS, goals.GRID_4_STEPS), check_grids),
    Check("enlarging", (goals.UPSCALE_TIME, goals.OVERSHOOT), check_upscaling),
    Check("sizes", (goals.TOTAL_WEIGHTS, goals.LARGEST_FILE), check_sizes),
)
CHECK_NAMES = tuple(check.name for check in CHECKS)


def run_checks(
    context: EvaluationContext, check_names: Sequence[str], report: Callable[[str], None]
) -> list[FigureRow]:
    """Run the named checks (none: all) and return their rows. Raises ValueError for an unknown name."""
    unknown_names = [name for name in check_names if name not in CHECK_NAMES]
    if unknown_names:
        raise ValueError(f"There is no check called {unknown_names[0][:40]!r}; there are {', '.join(CHECK_NAMES)}.")
    rows: list[FigureRow] = []
    for check in CHECKS:
        if not check_names or check.name in check_names:
            start_time = time.monotonic()
            rows += _run_check(check, context)
            report(f"{check.name}: {time.monotonic() - start_time:.0f} s")
    return rows


def _run_check(check: Check, context: EvaluationContext) -> list[FigureRow]:
    try:
        return check.run(context)
    except (ValueError, JobRejected) as error:
        return [goal.make_row(None, str(error)) for goal in check.goals]
