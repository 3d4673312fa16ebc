"""Trains the judge on renderings of the real artwork to predict the label and its MiniLM sentence vector.

The renderings are shifted, turned, brightened, blurred and noisy, so that the judge tolerates a decoder's errors. They
never pass through a network of ours. All randomness, down to the choice of renderings, is a function of (seed, step).
It is independent of files, clocks and the model that the judge evaluates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.device.memory import copy_to_device
from engine.models.judge import DEFAULT_WIDTHS, MAX_STAGES, MAX_WIDTH, JudgeNetwork, LabelJudge, as_images
from training.core.learner import (
    Learner,
    batch_indices,
    cosine_decay,
    is_hidden_matrix,
    mixed_precision,
    step_generator,
    warmup_factor,
)
from training.core.run import Metrics
from training.evaluation.measures import retrieval_at
from training.pictures.artwork import Artwork
from training.pictures.masked_pictures import as_pictures, write_picture_sheet
from training.pictures.variants import FIRST_VALIDATION_NUMBER, render_variant

SHEET_PICTURES = 64
RENDERINGS_PER_DRAWING = 8  # renderings of each drawing in memory: half a gigabyte saves a quarter of the time
GRADIENT_CLIP = 5.0


@dataclass(frozen=True)
class JudgeSettings:
    """The settings that stay the same for a whole run."""

    rate: float = 3e-3
    batch: int = 128
    warm: int = 50
    decay: float = 0.02
    smoothing: float = 0.1  # some labels are nearly equal, so no answer deserves certainty
    seed: int = 0
    widths: str = ",".join(map(str, DEFAULT_WIDTHS))  # channels of each stage, as `parse_widths` reads them


def parse_widths(text: str) -> tuple[int, ...]:
    """Read the channels of each stage, "64,128,256". Raises ValueError with one sentence."""
    parts = [part.strip() for part in text.split(",")]
    widths = tuple(int(part) for part in parts if re.fullmatch(r"[0-9]{1,5}", part))
    if not (len(widths) == len(parts) <= MAX_STAGES and all(0 < width <= MAX_WIDTH for width in widths)):
        raise ValueError(
            f"--widths takes one to {MAX_STAGES} numbers of channels from 1 to {MAX_WIDTH}, like 48,96,192,320, not "
            f"{text[:40]!r}."
        )
    return widths


def count_parameters(label_count: int, widths: Sequence[int]) -> int:
    """Return the size of a network of these widths without building it in memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in JudgeNetwork(label_count, widths).parameters())


def collect_labels(pictures: Sequence[Artwork]) -> tuple[str, ...]:
    """Return every label of the artwork once, sorted."""
    return tuple(sorted({art.description.label for art in pictures}))


def render_pairs(pictures: Sequence[Artwork], pairs: Sequence[tuple[int, int]], seed: int) -> np.ndarray:
    """Render these (picture, number) pairs as uint8 [n, 64, 64, 3]."""
    return np.stack([render_variant(pictures[index], number, seed).pixels for index, number in pairs])


class JudgeTrainer:
    """Trains a judge. `label_vectors` are the sentence vectors of the labels, of length 1: [labels, 384]."""

    def __init__(
        self,
        pictures: Sequence[Artwork],
        label_vectors: Tensor,
        settings: JudgeSettings = JudgeSettings(),
        device: torch.device = torch.device("cpu"),
    ) -> None:
        self.pictures = pictures
        self.settings = settings
        self.device = device
        self.label_vectors = label_vectors.to(device)
        self.labels = collect_labels(pictures)
        label_numbers = {label: number for number, label in enumerate(self.labels)}
        self.targets = torch.tensor([label_numbers[art.description.label] for art in pictures])
        torch.manual_seed(settings.seed)
        self.network = JudgeNetwork(len(self.labels), parse_widths(settings.widths)).to(device)
        self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's overloads leave it out)
        self.learners = (
            Learner("body", self.network.body, is_muon_matrix=is_hidden_matrix, weight_decay=settings.decay),
            Learner("heads", self.network.heads, weight_decay=settings.decay),
        )
        self.batch_size = min(settings.batch, len(pictures))
        self.steps = 0
        self._renderings: dict[tuple[int, int], np.ndarray] = {}

    @property
    def samples(self) -> int:
        return self.steps * self.batch_size

    @property
    def rate(self) -> float:
        return self.learners[0].rate

    def step(self, progress: float) -> Metrics:
        """Train one batch at this share of the run. Raises ValueError if the loss is not a number."""
        pictures, targets = self.next_batch()
        self.network.train()
        with mixed_precision(self.device):
            scores, sentences, _ = self.network(pictures)
        label_loss = F.cross_entropy(scores.float(), targets, label_smoothing=self.settings.smoothing)
        sentence_loss = 1 - F.cosine_similarity(sentences.float(), self.label_vectors[targets]).mean()
        loss = label_loss + sentence_loss
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is not a number after {self.samples} samples: lower the learning rate")
        loss.backward()
        rate = self.settings.rate * warmup_factor(self.steps, self.settings.warm) * cosine_decay(progress)
        for learner in self.learners:
            learner.update(rate, clip=GRADIENT_CLIP)
        self.steps += 1
        return {
            "loss": float(loss.detach()),
            "label": float(label_loss.detach()),
            "sentence": float(sentence_loss.detach()),
        }

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on, by name."""
        return {name: tensor for learner in self.learners for name, tensor in learner.state_tensors().items()}

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Restore a saved position: the next step repeats exactly. Raises KeyError for a missing tensor."""
        for learner in self.learners:
            learner.restore(tensors)
        self.steps = steps

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return this step's batch: pictures in -1 … 1 and the numbers of their labels."""
        index = batch_indices(self.settings.seed, self.steps, len(self.pictures), self.batch_size)
        numbers = np.random.default_rng([self.settings.seed, 1, self.steps]).integers(
            0, RENDERINGS_PER_DRAWING, self.batch_size
        )
        pictures = np.stack(
            [self._render(int(drawing), int(number)) for drawing, number in zip(index, numbers, strict=True)]
        )
        images, targets = (copy_to_device(tensor, self.device) for tensor in (as_images(pictures), self.targets[index]))
        return augment(images, step_generator(self.settings.seed, self.steps)), targets

    def _render(self, index: int, number: int) -> np.ndarray:
        if (index, number) not in self._renderings:
            self._renderings[index, number] = render_variant(self.pictures[index], number, self.settings.seed).pixels
        return self._renderings[index, number]


@dataclass(frozen=True)
class JudgeEvaluator:
    """Evaluates the judge: retrieval over renderings that it was never trained on."""

    trainer: JudgeTrainer
    pairs: Sequence[tuple[int, int]]

    def build_judge(self) -> LabelJudge:
        """Return the judge in its current state, with its own score."""
        own_scores = {name: round(figure, 2) for name, figure in self.evaluate().items()}
        return LabelJudge(self.trainer.network.eval(), self.trainer.labels, own_scores)

    def evaluate(self) -> Metrics:
        judge = LabelJudge(self.trainer.network.eval(), self.trainer.labels, {})
        output = judge.judge_pictures(render_pairs(self.trainer.pictures, self.pairs, self.trainer.settings.seed))
        targets = self.trainer.targets[[index for index, _ in self.pairs]]
        return {f"at_{count}": retrieval_at(output.scores, targets, count) for count in (1, 5)}

    def draw_sheet(self, path: Path) -> None:
        """Write a sheet of pictures as the judge gets them in training."""
        pictures, _ = self.trainer.next_batch()
        write_picture_sheet(path, list(as_pictures(pictures[:SHEET_PICTURES])))


def held_back_pairs(pictures: Sequence[Artwork], per_label: int, seed: int) -> list[tuple[int, int]]:
    """Return (picture, number) pairs never trained on, `per_label` for every label, its drawings in turn."""
    by_label: dict[str, list[int]] = {}
    for index, art in enumerate(pictures):
        by_label.setdefault(art.description.label, []).append(index)
    first_numbers = np.random.default_rng(seed).integers(0, 1 << 16, len(by_label))
    return [
        (drawings[int(start + number) % len(drawings)], FIRST_VALIDATION_NUMBER + number)
        for start, (_, drawings) in zip(first_numbers, sorted(by_label.items()), strict=True)
        for number in range(per_label)
    ]


# shares of half a side; radians; share of the size
MAX_SHIFT = 0.12
MAX_ROTATION = 0.15
MAX_STRETCH = 0.2
BLUR_SIDES = (44, 32, 24)  # a third of the pictures is blurred, to one of these sides


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Augment fp32 [n, 3, h, w] in -1 … 1; a function of the pictures and the state of the processor's generator."""
    transformed_pictures = _transform_geometry(pictures, generator)
    lit_pictures = _vary_brightness(transformed_pictures, generator)
    parts = list(lit_pictures.chunk(3 * len(BLUR_SIDES)))
    for index, side in enumerate(BLUR_SIDES):
        if index < len(parts):
            parts[index] = _blur(parts[index], side)
    blurred_pictures = torch.cat(parts)
    noise_level = torch.rand((len(blurred_pictures), 1, 1, 1), generator=generator).sub(0.7).clamp_(min=0.0).mul_(0.2)
    noise = noise_level * torch.randn(blurred_pictures.shape, generator=generator)
    return (blurred_pictures + noise.to(pictures.device)).clamp_(-1.0, 1.0)


def _transform_geometry(pictures: Tensor, generator: torch.Generator) -> Tensor:
    def draw_uniform(limit: float) -> Tensor:
        return (torch.rand(len(pictures), generator=generator) * 2 - 1) * limit

    angle = draw_uniform(MAX_ROTATION)
    scale = 1 + draw_uniform(MAX_STRETCH)
    cos = angle.cos() * scale
    sin = angle.sin() * scale
    matrices = torch.stack(
        [torch.stack([cos, -sin, draw_uniform(MAX_SHIFT)], 1), torch.stack([sin, cos, draw_uniform(MAX_SHIFT)], 1)], 1
    )
    grid = F.affine_grid(matrices.to(pictures.device), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _vary_brightness(pictures: Tensor, generator: torch.Generator) -> Tensor:
    count = len(pictures)
    contrast = 0.8 + 0.4 * torch.rand((count, 1, 1, 1), generator=generator)
    tint = 0.94 + 0.12 * torch.rand((count, 3, 1, 1), generator=generator)
    brightness = 0.3 * torch.rand((count, 1, 1, 1), generator=generator) - 0.15
    contrast, tint, brightness = (draws.to(pictures.device) for draws in (contrast, tint, brightness))
    return pictures * contrast * tint + brightness


def _blur(pictures: Tensor, side: int) -> Tensor:
    small_pictures = F.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small_pictures, size=pictures.shape[-2:], mode="bicubic", align_corners=False)
