"""The inputs of the checks, loaded on first use: the model, the judge, the artwork.

A missing input raises a ValueError with one sentence on every use; no load is tried twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.super_resolver import SuperResolver
from engine.training.evaluate.draw import Painter
from engine.training.evaluate.judge import LabelJudge, Seen
from engine.training.evaluate.judge_trainer import held_back, renderings
from engine.training.evaluate.measures import retrieval
from engine.training.evaluate.posed import OTHERWISE, posed_again
from engine.training.pictures.artwork import Artwork
from engine.unfit import Unfit

T = TypeVar("T")


@dataclass(frozen=True)
class Sizes:
    """How many pictures are drawn. `labels` of them (None: all) are drawn; the ranking is always over all labels."""

    labels: int | None = None
    per_colour: int = 10
    per_pair: int = 16
    per_word: int = 4  # seeds for each template
    groups: int = 40
    swept: int = 72


QUICK = Sizes(labels=160, per_colour=3, per_pair=6, per_word=1, groups=12, swept=24)


class Once(Generic[T]):
    """Calls `make` on first use and caches its value, or its error as a ValueError with one sentence."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._made = make, list[T]()
        self._error: ValueError | None = None

    def __call__(self) -> T:
        if self._error is not None:
            raise self._error
        if not self._made:
            try:
                self._made.append(self._make())
            except (ValueError, Unfit) as error:
                self._error = ValueError(str(error))
                raise self._error from error
        return self._made[0]


@dataclass(frozen=True)
class Drawn:
    """One picture for each of these labels, and the judge's output for it."""

    labels: tuple[str, ...]
    wanted: Tensor
    pictures: np.ndarray
    seen: Seen


class Scene:
    """The inputs of all checks. `weights` is the model's folder; each loader is called at most once."""

    def __init__(
        self,
        weights: Path,
        painter: Callable[[], Painter],
        judge: Callable[[], LabelJudge],
        artwork: Callable[[], Sequence[Artwork]],
        resolver: Callable[[], SuperResolver],
        sizes: Sizes = Sizes(),
        seed: int = 0,
    ) -> None:
        self._painter, self._judge, self._artwork = Once(painter), Once(judge), Once(artwork)
        self._resolver, self.weights = Once(resolver), weights
        self.sizes, self.seed = sizes, seed
        self.drawn = Once(self._draw)
        self.own = Once(self._score)
        self.own_posed = Once(self._score_posed)

    @property
    def painter(self) -> Painter:
        return self._painter()

    @property
    def judge(self) -> LabelJudge:
        return self._judge()

    @property
    def artwork(self) -> Sequence[Artwork]:
        return self._artwork()

    @property
    def resolver(self) -> SuperResolver:
        return self._resolver()

    @cached_property
    def places(self) -> dict[str, int]:
        """Return the number of each label."""
        return {label: place for place, label in enumerate(self.judge.labels)}

    def sample(self, count: int, salt: int) -> list[str]:
        """Choose `count` labels, without repeats while there are enough; the same for one `salt`."""
        labels, rng = self.judge.labels, np.random.default_rng([self.seed, salt])
        return [labels[int(i)] for i in rng.choice(len(labels), count, replace=count > len(labels))]

    def _draw(self) -> Drawn:
        count = self.sizes.labels
        labels = self.judge.labels if count is None else tuple(self.sample(min(count, len(self.judge.labels)), 1))
        pictures = self.painter.pictures([f"{label}, white background" for label in labels], range(len(labels)))
        wanted = torch.tensor([self.places[label] for label in labels])
        return Drawn(tuple(labels), wanted, pictures, self.judge.look(pictures))

    def _score(self) -> tuple[Seen, Tensor]:
        """Judge two held-back renderings of every label; return the judge's output and the true labels."""
        pairs = held_back(self.artwork, 2, self.seed)
        wanted = torch.tensor([self.places[self.artwork[index].words.label] for index, _ in pairs])
        return self.judge.look(renderings(self.artwork, pairs, self.seed)), wanted

    def _score_posed(self) -> tuple[Seen, Tensor]:
        """Judge the same drawings posed as prompts ask; return the judge's output and the true labels."""
        chosen = [self.artwork[index] for index, _ in held_back(self.artwork, 2, self.seed)]
        wanted = torch.tensor([self.places[one.words.label] for one in chosen])
        return self.judge.look(posed_again(chosen)), wanted.repeat(len(OTHERWISE))

    def own_score_posed(self, count: int) -> float:
        """Return the judge's retrieval in percent on posed real drawings. Raises ValueError without artwork."""
        seen, wanted = self.own_posed()
        return retrieval(seen.scores, wanted, count)

    def own_score(self, count: int) -> float:
        """Return the judge's retrieval in percent on any rendering; without artwork, its score from training."""
        try:
            seen, wanted = self.own()
        except ValueError:
            return float(self.judge.own[f"at_{count}"])
        return retrieval(seen.scores, wanted, count)
