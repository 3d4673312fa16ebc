"""Measures retrieval and backgrounds over guidance scales and guidance intervals, on one set of prompts."""

from __future__ import annotations

import torch

from engine.bench.row import Row
from engine.job import ALL_ALONG
from engine.training.evaluate.goals import INTERVALS, SWEPT, at_strength, during
from engine.training.evaluate.measures import background_of, retrieval, share
from engine.training.evaluate.scene import Scene
from engine.training.pictures.variants import BACKGROUNDS


def rows(scene: Scene) -> list[Row]:
    """Return rows for the same labels, colours and seeds at every scale, then at the usual scale in every interval."""
    labels, names = scene.sample(scene.sizes.swept, 5), list(BACKGROUNDS)
    colours = [names[i % len(names)] for i in range(len(labels))]
    prompts = [f"{label}, {colour} background" for label, colour in zip(labels, colours, strict=True)]
    wanted = torch.tensor([scene.places[label] for label in labels])
    found: list[Row] = []
    usual = scene.painter.family.guidance
    swept = [(strength, ALL_ALONG) for strength in SWEPT] + [(usual, interval) for interval in INTERVALS]
    for strength, interval in swept:
        pictures = scene.painter.pictures(prompts, range(len(prompts)), strength, interval)
        hits = [background_of(one) == colour for one, colour in zip(pictures, colours, strict=True)]
        at_5, backgrounds = during(interval) if interval != ALL_ALONG else at_strength(strength)
        found += [
            at_5.row(retrieval(scene.judge.look(pictures).scores, wanted, 5), f"{len(prompts)} pictures"),
            backgrounds.row(share(hits)),
        ]
    return found
