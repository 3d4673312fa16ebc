"""The inputs of the checks, loaded from folders on first use: the model, the judge, the artwork.

A missing input raises a ValueError with one sentence on every use. It tries no load twice. Pictures are drawn with the
engine's own text encoding, plan and autoencoder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.calibration.calibration import calibrate
from engine.contract import Dtype, JobRejected, Sampler, add_style, find_style, has_style
from engine.models.families.embedded import load_embedded
from engine.models.family import TokenConditioned
from engine.models.judge import JudgeOutput, LabelJudge, load_judge
from engine.process.model_settings import WEIGHTS_FOLDER, read_style_guide
from engine.prompt.style_guide import StyleGuide
from engine.sampling import plan
from engine.upscaling.super_resolver import SuperResolver
from training.diffusion.latent_sampling import build_input, initial_noise, sample_latents
from training.evaluation.judge_trainer import held_back_pairs, render_pairs
from training.evaluation.measures import retrieval_at
from training.pictures.artwork import Artwork
from training.pictures.variants import OTHER_SCALES, render_posed_rescaled

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


@dataclass(frozen=True)
class InputLoaders:
    """What loads each input of the checks; a loader's ValueError says in one sentence what is missing."""

    sampler: Callable[[], PictureSampler]
    judge: Callable[[], LabelJudge]
    artwork: Callable[[], Sequence[Artwork]]
    resolver: Callable[[], SuperResolver]
    lemmas: Callable[[], Mapping[str, frozenset[str]]]


class EvaluationContext:
    """The inputs of all checks. `weights` is the model's folder; each loader is called at most once.

    `style`: the words that the prompts of the label sample name.
    """

    def __init__(
        self, weights: Path, loaders: InputLoaders, sizes: SampleSizes = SampleSizes(), seed: int = 0, style: str = ""
    ) -> None:
        self._sampler = LazyValue(loaders.sampler)
        self._judge = LazyValue(loaders.judge)
        self._artwork = LazyValue(loaders.artwork)
        self._resolver = LazyValue(loaders.resolver)
        self._lemmas = LazyValue(loaders.lemmas)
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


ROWS_PER_FORWARD = 64  # of a forward: a larger batch gains nothing on a processor


@dataclass(frozen=True)
class PictureSampler:
    """Generates pictures of one family. It calls `on_progress` with the finished and the total number of steps.

    With a `style_guide`, prompts get the styles of their seeds, as a recipe's pictures do.
    """

    family: TokenConditioned
    dtype: Dtype
    on_progress: Callable[[int, int], None] = lambda finished, total: None
    steps: int = 25
    sampler: Sampler = "dpmpp_2m"
    style_guide: StyleGuide | None = None

    def sample_pictures(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        guidance: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> np.ndarray:
        """Draw uint8 [n, h, w, 3] as people see them, at the model's size; one prompt and seed a picture.

        Each pixel is the mean of its area in the finished picture. Guidance defaults to the model's.
        """
        latents = self.sample_latents(prompts, seeds, guidance, interval)
        return np.stack([np.asarray(self._finish_at_own_size(picture_latents)) for picture_latents in latents])

    def choose_style(self, prompt: str, seed: int) -> str:
        """Return the style that a prompt without one gets from its seed; "" for none."""
        if self.style_guide is None or has_style(prompt):
            return ""
        return find_style(self.style_guide.choose_styles(prompt), seed)

    def _finish_at_own_size(self, latents: Tensor) -> Image.Image:
        picture = self.family.finish(latents).convert("RGB")
        return picture.reduce(self.family.upscale_factor) if self.family.upscale_factor > 1 else picture

    def sample_latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        guidance: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> Tensor:
        """Draw the latents of each prompt and seed: [n, channels, h, w]."""
        family = self.family
        guidance_scale = family.guidance if guidance is None else guidance
        guidance_interval = family.interval if interval is None else interval
        sampling_plan = plan(family.scheduler_config, self.sampler, self.steps)
        drawings = [
            build_input(
                family,
                family.encode_text(add_style(prompt, self.choose_style(prompt, seed))),
                guidance_scale,
                sampling_plan.init_sigma * initial_noise(family, seed),
                guidance_interval,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return torch.stack(
            sample_latents(
                family, sampling_plan, drawings, on_step=self.on_progress, dtype=self.dtype, rows=ROWS_PER_FORWARD
            )
        )


UPSCALER_FILE = Path("upscaler") / "model.safetensors"


def make_loaders(
    weights: Path,
    judge_folder: Path,
    load_artwork: Callable[[], Sequence[Artwork]],
    load_lemmas: Callable[[], Mapping[str, frozenset[str]]],
    on_progress: Callable[[int, int], None],
) -> InputLoaders:
    """Return the loaders for the model in `weights` and the judge in another folder."""
    return InputLoaders(
        lambda: replace(load_sampler(weights), on_progress=on_progress),
        lambda: _load_judge(judge_folder),
        load_artwork,
        lambda: load_resolver(weights),
        load_lemmas,
    )


def load_sampler(weights: Path) -> PictureSampler:
    """Load a folder's model as the engine would run it here, in the fastest number format."""
    family = load_embedded(weights=weights, resolver=SuperResolver.load(find_upscaler(weights)))
    with tempfile.TemporaryDirectory() as temp_folder, torch.inference_mode():
        dtype = calibrate(family, Path(temp_folder) / "calibration.json").dtype
    return PictureSampler(family, dtype, style_guide=read_style_guide(weights))


def _load_judge(folder: Path) -> LabelJudge:
    try:
        return load_judge(folder)
    except FileNotFoundError:
        raise ValueError("The judge's weights are not there: `darkroom train judge` makes them.") from None


def load_resolver(weights: Path) -> SuperResolver:
    """Load the model's own super-resolver, or the built-in one. Raises ValueError if its weights are missing."""
    resolver = SuperResolver.load(find_upscaler(weights))
    if resolver is None:
        raise ValueError("The super-resolver's weights are not there: `darkroom train upscaler` makes them.")
    return resolver


def find_upscaler(weights: Path) -> Path | None:
    """Return the path of the model's own super-resolver; None for the built-in one."""
    upscaler_path = weights / UPSCALER_FILE
    return upscaler_path if upscaler_path.is_file() and weights != WEIGHTS_FOLDER else None
