"""Measures retrieval and backgrounds over guidance scales and guidance intervals, on one set of prompts."""

from __future__ import annotations

import torch

from benchmarks.report.figure_row import FigureRow
from engine.contract import FULL_INTERVAL
from training.evaluation.context import EvaluationContext
from training.evaluation.goals import GUIDANCE_INTERVALS, GUIDANCE_SCALES, goals_at_scale, goals_in_interval
from training.evaluation.measures import nearest_background, percent_of_hits, retrieval_at
from training.pictures.variants import BACKGROUND_COLOURS


def check_guidance(context: EvaluationContext) -> list[FigureRow]:
    """Return rows for the same labels, colours and seeds at every scale, then at the usual scale in every interval."""
    labels = context.choose_labels(context.sizes.guidance_prompts, 5)
    names = list(BACKGROUND_COLOURS)
    colours = [names[i % len(names)] for i in range(len(labels))]
    prompts = [f"{label}, {colour} background" for label, colour in zip(labels, colours, strict=True)]
    targets = torch.tensor([context.label_numbers[label] for label in labels])
    results: list[FigureRow] = []
    default_scale = context.sampler.family.guidance
    scale_intervals = [(guidance_scale, FULL_INTERVAL) for guidance_scale in GUIDANCE_SCALES] + [
        (default_scale, interval) for interval in GUIDANCE_INTERVALS
    ]
    for guidance_scale, interval in scale_intervals:
        pictures = context.sampler.sample_pictures(prompts, range(len(prompts)), guidance_scale, interval)
        hits = [nearest_background(picture) == colour for picture, colour in zip(pictures, colours, strict=True)]
        retrieval_goal, background_goal = (
            goals_in_interval(interval) if interval != FULL_INTERVAL else goals_at_scale(guidance_scale)
        )
        results += [
            retrieval_goal.make_row(
                retrieval_at(context.judge.judge_pictures(pictures).scores, targets, 5), f"{len(prompts)} pictures"
            ),
            background_goal.make_row(percent_of_hits(hits)),
        ]
    return results
