"""The inputs of the checks, loaded on first use: the model, the judge, the artwork.

A missing input raises a ValueError with one sentence on every use. It tries no load twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from engine.contract.rejection import JobRejected
from engine.models.judge import JudgeOutput, LabelJudge
from engine.upscaling.super_resolver import SuperResolver
from training.evaluation.judge_trainer import held_back_pairs, render_pairs
from training.evaluation.measures import retrieval_at
from training.evaluation.normal_pose import OTHER_SCALES, render_posed_rescaled
from training.evaluation.picture_sampler import PictureSampler
from training.pictures.artwork import Artwork

Value = TypeVar("Value")


@dataclass(frozen=True)
class SampleSizes:
    """How many pictures are drawn. `label_count`: of so many labels (None: all); the ranking is over all."""

    label_count: int | None = None
    per_colour: int = 10
    per_pair: int = 16
    per_word: int = 4  # seeds for each template
    lemma_count: int = 240
    seed_groups: int = 40
    guidance_prompts: int = 72


QUICK_SIZES = SampleSizes(
    label_count=160, per_colour=3, per_pair=6, per_word=1, lemma_count=60, seed_groups=12, guidance_prompts=24
)


class LazyValue(Generic[Value]):
    """Calls `load` on first use and caches its value, or its error as a ValueError with one sentence."""

    def __init__(self, load: Callable[[], Value]) -> None:
        self._load = load
        self._values = list[Value]()
        self._error: ValueError | None = None

    def __call__(self) -> Value:
        if self._error is not None:
            raise self._error
        if not self._values:
            try:
                self._values.append(self._load())
            except (ValueError, JobRejected) as error:
                self._error = ValueError(str(error))
                raise self._error from error
        return self._values[0]


@dataclass(frozen=True)
class LabelSample:
    """One picture for each of these labels, the style that it has ("": none), and the judge's output for it."""

    labels: tuple[str, ...]
    styles: tuple[str, ...]
    targets: Tensor
    pictures: np.ndarray
    output: JudgeOutput

    def list_missed(self) -> list[tuple[str, str]]:
        """Return label and style of the pictures that the judge takes for something else."""
        is_hit = cast("list[bool]", (self.output.scores.argmax(dim=1) == self.targets).tolist())
        return [(label, style) for label, style, hit in zip(self.labels, self.styles, is_hit, strict=True) if not hit]


class EvaluationContext:
    """The inputs of all checks. `weights` is the model's folder; each loader is called at most once.

    `style`: the words that the prompts of the label sample name.
    """

    def __init__(
        self,
        weights: Path,
        load_sampler: Callable[[], PictureSampler],
        load_judge: Callable[[], LabelJudge],
        load_artwork: Callable[[], Sequence[Artwork]],
        load_resolver: Callable[[], SuperResolver],
        load_lemmas: Callable[[], Mapping[str, frozenset[str]]],
        sizes: SampleSizes = SampleSizes(),
        seed: int = 0,
        style: str = "",
    ) -> None:
        self._sampler = LazyValue(load_sampler)
        self._judge = LazyValue(load_judge)
        self._artwork = LazyValue(load_artwork)
        self._resolver = LazyValue(load_resolver)
        self._lemmas = LazyValue(load_lemmas)
        self.weights = weights
        self.sizes = sizes
        self.seed = seed
        self.style = style
        self.label_sample = LazyValue(self._sample_labels)
        self.judge_renderings = LazyValue(self._judge_renderings)
        self.judge_on_white = LazyValue(self._judge_on_white)

    @property
    def sampler(self) -> PictureSampler:
        return self._sampler()

    @property
    def judge(self) -> LabelJudge:
        return self._judge()

    @property
    def artwork(self) -> Sequence[Artwork]:
        return self._artwork()

    @property
    def resolver(self) -> SuperResolver:
        return self._resolver()

    @property
    def lemmas(self) -> Mapping[str, frozenset[str]]:
        """Return the held-out lemmas of WordNet, each with the labels that it means."""
        return self._lemmas()

    @cached_property
    def label_numbers(self) -> dict[str, int]:
        """Return the number of each label."""
        return {label: number for number, label in enumerate(self.judge.labels)}

    def choose_labels(self, count: int, salt: int) -> list[str]:
        """Choose `count` labels, without repeats while there are enough; the same for one `salt`."""
        labels = self.judge.labels
        rng = np.random.default_rng([self.seed, salt])
        return [labels[int(i)] for i in rng.choice(len(labels), count, replace=count > len(labels))]

    def _sample_labels(self) -> LabelSample:
        count = self.sizes.label_count
        labels = (
            self.judge.labels if count is None else tuple(self.choose_labels(min(count, len(self.judge.labels)), 1))
        )
        style = f"{self.style}, " if self.style else ""
        prompts = [f"{label}, {style}white background" for label in labels]
        styles = tuple(self.style or self.sampler.choose_style(prompt, seed) for seed, prompt in enumerate(prompts))
        pictures = self.sampler.sample_pictures(prompts, range(len(labels)))
        targets = torch.tensor([self.label_numbers[label] for label in labels])
        return LabelSample(tuple(labels), styles, targets, pictures, self.judge.judge_pictures(pictures))

    def _judge_renderings(self) -> tuple[JudgeOutput, Tensor]:
        """Judge two held-out renderings of every label; return the judge's output and the true labels."""
        pairs = held_back_pairs(self.artwork, 2, self.seed)
        targets = torch.tensor([self.label_numbers[self.artwork[index].description.label] for index, _ in pairs])
        return self.judge.judge_pictures(render_pairs(self.artwork, pairs, self.seed)), targets

    def choose_drawings(self) -> list[Artwork]:
        """Return two drawings of each label, one after the other; one drawing twice where there are no two."""
        return [self.artwork[index] for index, _ in held_back_pairs(self.artwork, 2, self.seed)]

    def _judge_on_white(self) -> tuple[JudgeOutput, Tensor]:
        """Judge the same drawings posed as prompts ask; return the judge's output and the true labels."""
        drawings = self.choose_drawings()
        targets = torch.tensor([self.label_numbers[drawing.description.label] for drawing in drawings])
        return self.judge.judge_pictures(render_posed_rescaled(drawings)), targets.repeat(len(OTHER_SCALES))

    def judge_score_on_white(self, count: int) -> float:
        """Return the judge's retrieval in percent on posed real drawings. Raises ValueError without artwork."""
        output, targets = self.judge_on_white()
        return retrieval_at(output.scores, targets, count)

    def judge_score(self, count: int) -> float:
        """Return the judge's retrieval in percent on any rendering; without artwork, its score from training."""
        try:
            output, targets = self.judge_renderings()
        except ValueError:
            return float(self.judge.own_scores[f"at_{count}"])
        return retrieval_at(output.scores, targets, count)
