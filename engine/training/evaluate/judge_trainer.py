"""Trains the judge on renderings of the real artwork to predict the label and its MiniLM sentence vector.

Knows one step and the state that repeats the next one exactly. All randomness, down to the choice of renderings, is a
function of (seed, step). Knows nothing of files, clocks or the model that it will evaluate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.training.chance import batch_at, draws_at
from engine.training.evaluate.blemishes import blemished
from engine.training.evaluate.judge import WIDTHS, JudgeNetwork, LabelJudge
from engine.training.evaluate.measures import retrieval
from engine.training.learner import Learner, falling, warming
from engine.training.muon import suits
from engine.training.pictures.artwork import Artwork
from engine.training.pictures.pixels import as_images, as_pictures
from engine.training.pictures.variants import HELD_BACK, variant
from engine.training.run import Losses
from engine.training.validate import write_sheet

SHOWN = 64
RENDERED = 8  # renderings of each drawing in memory: half a gigabyte saves a quarter of the time
CLIP = 5.0


@dataclass(frozen=True)
class JudgeSettings:
    """The settings that stay the same for a whole run."""

    rate: float = 3e-3
    batch: int = 128
    warm: int = 50
    decay: float = 0.02
    smoothing: float = 0.1  # some labels are nearly equal, so no answer deserves certainty
    seed: int = 0


def labels_of(pictures: Sequence[Artwork]) -> tuple[str, ...]:
    """Return every label of the artwork once, sorted."""
    return tuple(sorted({art.words.label for art in pictures}))


def renderings(pictures: Sequence[Artwork], pairs: Sequence[tuple[int, int]], seed: int) -> np.ndarray:
    """Render these (picture, number) pairs as uint8 [n, 64, 64, 3]."""
    return np.stack([variant(pictures[index], number, seed).pixels for index, number in pairs])


class JudgeTrainer:
    """Trains a judge. `vectors` are the sentence vectors of `labels`, of length 1: [labels, 384]."""

    def __init__(
        self,
        pictures: Sequence[Artwork],
        vectors: Tensor,
        settings: JudgeSettings = JudgeSettings(),
        widths: Sequence[int] = WIDTHS,
    ) -> None:
        self.pictures, self.vectors, self.settings = pictures, vectors, settings
        self.labels = labels_of(pictures)
        places = {label: place for place, label in enumerate(self.labels)}
        self.wanted = torch.tensor([places[art.words.label] for art in pictures])
        torch.manual_seed(settings.seed)
        self.network = JudgeNetwork(len(self.labels), widths)
        self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's overloads leave it out)
        self.learners = (
            Learner("body", self.network.body, matrices=suits, decay=settings.decay),
            Learner("heads", self.network.heads, decay=settings.decay),
        )
        self.batch = min(settings.batch, len(pictures))
        self.steps = 0
        self._rendered: dict[tuple[int, int], np.ndarray] = {}

    @property
    def samples(self) -> int:
        return self.steps * self.batch

    @property
    def rate(self) -> float:
        return self.learners[0].rate

    def step(self, share: float) -> Losses:
        """Train one batch at this share of the run. Raises ValueError if the loss is not a number."""
        seen, wanted = self.next()
        self.network.train()
        with torch.autocast("cpu", torch.bfloat16):
            scores, sentences, _ = self.network(seen)
        named = F.cross_entropy(scores.float(), wanted, label_smoothing=self.settings.smoothing)
        meant = 1 - F.cosine_similarity(sentences.float(), self.vectors[wanted]).mean()
        loss = named + meant
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is not a number after {self.samples} samples: lower the learning rate")
        loss.backward()
        rate = self.settings.rate * warming(self.steps, self.settings.warm) * falling(share)
        for learner in self.learners:
            learner.move(rate, clip=CLIP)
        self.steps += 1
        return {"loss": float(loss.detach()), "label": float(named.detach()), "sentence": float(meant.detach())}

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on, by name."""
        return {name: tensor for learner in self.learners for name, tensor in learner.tensors().items()}

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Restore a saved position: the next step repeats exactly. Raises KeyError for a missing tensor."""
        for learner in self.learners:
            learner.restore(tensors)
        self.steps = steps

    def next(self) -> tuple[Tensor, Tensor]:
        """Return this step's batch: pictures in -1 … 1 and the numbers of their labels."""
        index = batch_at(self.settings.seed, self.steps, len(self.pictures), self.batch)
        numbers = np.random.default_rng([self.settings.seed, 1, self.steps]).integers(0, RENDERED, self.batch)
        drawn = np.stack([self._rendering(int(one), int(number)) for one, number in zip(index, numbers, strict=True)])
        return blemished(as_images(drawn), draws_at(self.settings.seed, self.steps)), self.wanted[index]

    def _rendering(self, index: int, number: int) -> np.ndarray:
        if (index, number) not in self._rendered:
            self._rendered[index, number] = variant(self.pictures[index], number, self.settings.seed).pixels
        return self._rendered[index, number]


@dataclass(frozen=True)
class JudgeLook:
    """Evaluates the judge: retrieval over renderings that it was never trained on."""

    trainer: JudgeTrainer
    pairs: Sequence[tuple[int, int]]

    def judge(self) -> LabelJudge:
        """Return the judge in its current state, with its own score."""
        own = {name: round(figure, 2) for name, figure in self.figures().items()}
        return LabelJudge(self.trainer.network.eval(), self.trainer.labels, own)

    def figures(self) -> Losses:
        now = LabelJudge(self.trainer.network.eval(), self.trainer.labels, {})
        seen = now.look(renderings(self.trainer.pictures, self.pairs, self.trainer.settings.seed))
        wanted = self.trainer.wanted[[index for index, _ in self.pairs]]
        return {f"at_{count}": retrieval(seen.scores, wanted, count) for count in (1, 5)}

    def sheet(self, path: Path) -> None:
        """Write a sheet of pictures as the judge gets them in training."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures, _ = self.trainer.next()
        write_sheet(path, list(as_pictures(pictures[:SHOWN])))


def held_back(pictures: Sequence[Artwork], per_label: int, seed: int) -> list[tuple[int, int]]:
    """Return (picture, number) pairs never trained on, `per_label` for every label, its drawings in turn."""
    by_label: dict[str, list[int]] = {}
    for index, art in enumerate(pictures):
        by_label.setdefault(art.words.label, []).append(index)
    first = np.random.default_rng(seed).integers(0, 1 << 16, len(by_label))
    return [
        (drawings[int(start + number) % len(drawings)], HELD_BACK + number)
        for start, (_, drawings) in zip(first, sorted(by_label.items()), strict=True)
        for number in range(per_label)
    ]
