"""Checks for memorisation: how much seeds differ, and which pictures repeat a training drawing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from engine.bench.row import Row
from engine.training.evaluate import goals
from engine.training.evaluate.measures import alike, nearest, share, small, spread
from engine.training.evaluate.posed import OTHERWISE, posed
from engine.training.evaluate.scene import Scene
from engine.training.pictures.artwork import Artwork

SEEDS = 4
SAID = 3


def seeds(scene: Scene) -> list[Row]:
    """Compare four seeds of some prompts in the judge's features, relative to different real drawings (1)."""
    labels = scene.sample(scene.sizes.groups, 3)
    prompts = [f"{label}, white background" for label in labels for _ in range(SEEDS)]
    pictures = scene.painter.pictures(prompts, range(len(prompts)))
    features = scene.judge.look(pictures).features.unflatten(0, (len(labels), SEEDS))
    between = float(spread(features).mean())
    same = [alike(some) for some in pictures.reshape(len(labels), SEEDS, *pictures.shape[1:])]
    named = [label for label, one in zip(labels, same, strict=True) if one]
    note = f"{len(labels)} prompts, {SEEDS} seeds"
    said = f"{note}: {', '.join(named[:SAID])}{' …' if len(named) > SAID else ''}" if named else note
    return [
        goals.DIVERSITY.row(between / _apart(scene), f"{note}; 1 would be as different as two drawings"),
        goals.SAME.row(share(same), said),
    ]


def memories(scene: Scene) -> list[Row]:
    """Count pictures as repetitions if they are nearer to a drawing than its own other renderings are."""
    drawn, art = scene.drawn(), scene.artwork
    drawings = np.stack([posed(one) for one in art])
    limit = float(np.median(_rendered_again(art, drawings)))
    distances, index = nearest(drawn.pictures, drawings)
    repeats = (distances < limit).tolist()
    asked = [art[int(i)].words.label == label for i, label in zip(index, drawn.labels, strict=True)]
    note = (
        f"nearer to it than {limit:.1f} of 255, the median between two renderings of one drawing; the median of "
        f"{len(asked)} pictures is {float(distances.median()):.1f}; the nearest drawing is the one that was asked for "
        f"in {share(asked):.0f} %; of the drawings themselves, {_by_nature(art, drawings, limit):.0f} % are as near to "
        "one of another label"
    )
    return [goals.MEMORISED.row(share(repeats), note)]


def _rendered_again(art: Sequence[Artwork], drawings: np.ndarray) -> list[float]:
    """Return each drawing's distance from its own other renderings (RMS, in steps of 255)."""
    first = small(drawings)
    found: list[float] = []
    for scale in OTHERWISE:
        again = small(np.stack([posed(one, scale) for one in art]))
        found += (again - first).square().mean(dim=1).sqrt().tolist()
    return found


def _by_nature(art: Sequence[Artwork], drawings: np.ndarray, limit: float) -> float:
    """Return the percentage of labels whose drawing is nearer than `limit` to another label's, without any model."""
    numbers = {label: number for number, label in enumerate(sorted({one.words.label for one in art}))}
    label = torch.tensor([numbers[one.words.label] for one in art])
    first = torch.tensor([label.tolist().index(number) for number in range(len(numbers))])
    known = small(drawings)
    near: list[bool] = []
    for some in first.split(256):
        apart = torch.cdist(known[some], known) / known.size(1) ** 0.5
        apart[label[some][:, None] == label[None]] = torch.inf
        near += (apart.min(dim=1).values < limit).tolist()
    return share(near)


def _apart(scene: Scene) -> float:
    """Return the mean distance between real drawings of different labels, in the judge's features."""
    by_label = {one.words.label: one for one in scene.artwork}
    rng = np.random.default_rng([scene.seed, 4])
    chosen = rng.choice(sorted(by_label), min(256, len(by_label)), replace=False)
    features = scene.judge.look(np.stack([posed(by_label[str(label)]) for label in chosen])).features
    return float(spread(features[None]))
