"""Checks whether drawn pictures look as real drawings do: the judge's features, and how sharp the edges are."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.report.figure_row import FigureRow
from engine.models.judge import as_images, resize_pictures
from training.evaluation import goals
from training.evaluation.context import EvaluationContext
from training.evaluation.measures import frechet_distance
from training.evaluation.normal_pose import render_posed
from training.gan.losses import gradient_energy


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
