"""Checks for memorisation: how much seeds differ, and which pictures repeat a training drawing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from benchmarks.report.figure_row import FigureRow
from training.evaluation import goals
from training.evaluation.context import EvaluationContext
from training.evaluation.measures import find_nearest_drawings, has_duplicates, mean_distance, percent_of_hits, shrink
from training.evaluation.normal_pose import OTHER_SCALES, render_posed
from training.pictures.artwork import Artwork

SEEDS_PER_PROMPT = 4
LISTED_PROMPTS = 3


def check_seeds(context: EvaluationContext) -> list[FigureRow]:
    """Compare four seeds of some prompts in the judge's features, relative to different real drawings (1)."""
    labels = context.choose_labels(context.sizes.seed_groups, 3)
    prompts = [f"{label}, white background" for label in labels for _ in range(SEEDS_PER_PROMPT)]
    pictures = context.sampler.sample_pictures(prompts, range(len(prompts)))
    features = torch.unflatten(context.judge.judge_pictures(pictures).features, 0, (len(labels), SEEDS_PER_PROMPT))
    seed_distance = float(mean_distance(features).mean())
    has_duplicate = [
        has_duplicates(group) for group in pictures.reshape(len(labels), SEEDS_PER_PROMPT, *pictures.shape[1:])
    ]
    duplicate_labels = [label for label, is_duplicate in zip(labels, has_duplicate, strict=True) if is_duplicate]
    note = f"{len(labels)} prompts, {SEEDS_PER_PROMPT} seeds"
    duplicate_note = (
        f"{note}: "
        f"{', '.join(duplicate_labels[:LISTED_PROMPTS])}{' …' if len(duplicate_labels) > LISTED_PROMPTS else ''}"
        if duplicate_labels
        else note
    )
    return [
        goals.DIVERSITY.make_row(
            seed_distance / _drawing_distance(context), f"{note}; 1 would be as different as two drawings"
        ),
        goals.SEEDS_ALIKE.make_row(percent_of_hits(has_duplicate), duplicate_note),
    ]


def check_memorisation(context: EvaluationContext) -> list[FigureRow]:
    """Count pictures as repetitions if they are nearer to a drawing than its own other renderings are."""
    label_sample = context.label_sample()
    artwork = context.artwork
    drawings = np.stack([render_posed(drawing) for drawing in artwork])
    limit = float(np.median(_rescaled_distances(artwork, drawings)))
    distances, index = find_nearest_drawings(label_sample.pictures, drawings)
    is_repeated = cast(list[bool], (distances < limit).tolist())
    is_label_match = [
        artwork[int(i)].description.label == label for i, label in zip(index, label_sample.labels, strict=True)
    ]
    note = (
        f"nearer to it than {limit:.1f} of 255, the median between two renderings of one drawing; the median of "
        f"{len(is_label_match)} pictures is {float(distances.median()):.1f}; the nearest drawing is the one that was "
        "asked for "
        f"in {percent_of_hits(is_label_match):.0f} %; of the drawings themselves, "
        f"{_percent_alike_drawings(artwork, drawings, limit):.0f} % are as near to "
        "one of another label"
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
    label_numbers = {
        drawing_labels: number
        for number, drawing_labels in enumerate(sorted({drawing.description.label for drawing in artwork}))
    }
    drawing_labels = torch.tensor([label_numbers[drawing.description.label] for drawing in artwork])
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
    features = context.judge.judge_pictures(
        np.stack([render_posed(by_label[str(label)]) for label in sampled_labels])
    ).features
    return float(mean_distance(features[None]))
