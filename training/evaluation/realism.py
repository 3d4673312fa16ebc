"""Checks whether drawn pictures look as real drawings do: the judge's features, and how sharp the edges are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.report.figure_row import FigureRow
from engine.models.judge import resize_pictures
from training.evaluation import goals
from training.evaluation.context import EvaluationContext
from training.evaluation.measures import frechet_distance
from training.evaluation.normal_pose import render_posed
from training.gan.losses import gradient_energy
from training.pictures.artwork import Artwork
from training.pictures.masked_pictures import as_images


def check_realism(context: EvaluationContext) -> list[FigureRow]:
    """Compare one picture of each label with real drawings of the same labels, on white."""
    return [_frechet_row(context), _gradient_row(context)]


def _frechet_row(context: EvaluationContext) -> FigureRow:
    """Measure the distance of the pictures from real drawings, and that of the real drawings from each other."""
    label_sample, (real_output, real_targets) = context.label_sample(), context.judge_on_white()
    drawn, real = label_sample.output.features, real_output.features[torch.isin(real_targets, label_sample.targets)]
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

    def measure(picture: np.ndarray) -> float:
        return gradient_energy(as_images(np.stack([picture])))

    def measure_ratio(real_drawings: Sequence[Artwork]) -> float:
        drawn_energy = sum(measure(pictures[drawing.description.label]) for drawing in real_drawings)
        return drawn_energy / sum(measure(render_posed(drawing)) for drawing in real_drawings)

    styles = sorted({drawing.style for drawing in drawings})
    by_style = ", ".join(
        f"{style} {measure_ratio([drawing for drawing in drawings if drawing.style == style]):.2f}" for style in styles
    )
    note = f"{len(pictures)} pictures, {len(drawings)} real drawings of the same labels and size; by style: {by_style}"
    return goals.GRADIENT_ENERGY.make_row(measure_ratio(drawings), note)
