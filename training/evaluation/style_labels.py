"""Finds the labels that a model draws well in a style: the judge recognises each of some pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engine.contract import add_style, has_style
from engine.models.judge import LabelJudge
from training.evaluation.measures import best_places

SEEDS = (1_000_000, 2_000_000)  # of each label, far from those of the evaluation
DrawPictures = Callable[[Sequence[str], Sequence[int]], np.ndarray]  # prompts and seeds → uint8 [n, h, w, 3]


def find_labels_of_style(draw_pictures: DrawPictures, judge: LabelJudge, style: str) -> frozenset[str]:
    """Return the labels whose picture in this style the judge puts first, with every seed of `SEEDS`."""
    # A prompt's subject ends at a comma, and a text that names a style ("pencil") gets no other.
    labels = [label for label in judge.labels if "," not in label and not has_style(label)]
    for first_seed in SEEDS:
        labels = _keep_recognised(draw_pictures, judge, labels, style, first_seed) if labels else []
    return frozenset(labels)


def _keep_recognised(
    draw_pictures: DrawPictures, judge: LabelJudge, labels: Sequence[str], style: str, first_seed: int
) -> list[str]:
    """Return the labels that are recognised; label `i` of the judge is drawn from seed `first_seed + i`."""
    numbers = [judge.labels.index(label) for label in labels]
    prompts = [add_style(f"{label}, white background", style) for label in labels]
    pictures = draw_pictures(prompts, [first_seed + number for number in numbers])
    places = best_places(judge.judge_pictures(pictures).scores, [[number] for number in numbers])
    return [label for label, place in zip(labels, places, strict=True) if place == 1]
