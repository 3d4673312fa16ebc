"""One forward of a batch: how many rows it has, what is in them, guidance on the output, one update for every sampler,
and what early previews show.

Each image depends on its own rows alone (no sum runs over the batch), so a non-finite row spoils only its own image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import torch

from engine.batching.model_inputs import ModelInputs, PictureInput, build_conditioning
from engine.batching.trajectory import MaskedSource, Trajectory
from engine.contract import TURBO_LORA, TURBO_SAMPLER, JobRejected, Lora, has_negative_weight
from engine.device.memory import copy_to_device
from engine.models.family import SMALL_MODEL_SIZE, Conditioning, Family, NormalizesGuidance, TakesLoras, denoise
from engine.models.picture_conditions import PictureRows
from engine.sampling import COLUMNS

MAX_KEYS = 1000

log = logging.getLogger(__name__)


class LimitedImage(Protocol):
    """An image that is scheduled: only those of equal `key` share a batch; `bucket` is its pinned batch shape."""

    model: str

    @property
    def rows(self) -> int: ...

    @property
    def key(self) -> Hashable: ...

    @property
    def bucket(self) -> int | None: ...


class BatchLimits:
    """The batch limit of each key. The default is `default_limit`, or the model's own limit."""

    def __init__(self, default_limit: int, model_limits: Mapping[str, int] = MappingProxyType({})) -> None:
        self.default_limit = default_limit
        self._model_limits = dict(model_limits)
        self._halved_limits: dict[Hashable, int] = {}
        self.limits: dict[Hashable, int] = {}

    def limit_for(self, image: LimitedImage) -> int:
        """Return the batch limit of an image's key. A pinned forward costs its whole bucket, so a batch may fill it."""
        key = image.key
        if key not in self.limits and len(self.limits) >= MAX_KEYS:
            self._clear()
        limit = max(self._model_limits.get(image.model, self.default_limit), image.bucket or 0)
        return self.limits.setdefault(key, min(limit, self._halved_limits.get(key, limit)))

    def set_model_limit(self, model: str, limit: int) -> None:
        """Set a model's limit from now on; where memory ran out, it stays at what fitted, or less."""
        if self._model_limits.get(model) != limit:
            self._model_limits[model] = limit
            self.limits.clear()

    def _clear(self) -> None:
        self.limits.clear()
        self._halved_limits.clear()

    def halve(self, batch: Sequence[LimitedImage]) -> int | None:
        """Return the halved limit after a batch ran out of memory; None if it cannot be smaller."""
        limit = self.limit_for(batch[0])
        if batch[0].bucket is not None or limit == 1:
            return None
        lower = max(1, min(limit, sum(image.rows for image in batch)) // 2)
        self.limits[batch[0].key] = self._halved_limits[batch[0].key] = lower
        return lower


MeasureNorm = Callable[[torch.Tensor], torch.Tensor]  # `NormalizesGuidance.measure_norm`


@dataclass(frozen=True)
class RowLayout:
    """The rows of each image. Rebuilt only when the batch changes.

    `owner[r]` is the image of row r; `base[i]` is the first row of image i. `slots` holds, for the first, second, …
    further text, (row of each image, coefficient of each image). An image without that text points at its base with
    coefficient 0. Copies of the first row pad the rows to a multiple of `forward_rows`. `guidance` is
    that of each image (`ModelInputs`). `pictures_by_forward`: the pictures of each forward's rows.
    """

    forward_rows: int

    owner: torch.Tensor
    base: torch.Tensor
    slots: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    guidance: torch.Tensor
    conditioning: Conditioning
    pictures_by_forward: tuple[tuple[PictureRows, ...], ...]

    @classmethod
    def build(cls, images: Sequence[Trajectory], size: int) -> RowLayout:
        device = images[0].x.device
        *base_rows, rows = [0, *accumulate(image.rows for image in images)]
        padding = -rows % size
        owner = [number for number, image in enumerate(images) for _ in range(image.rows)] + [0] * padding
        conditioning = tuple(
            torch.cat([*parts] + [parts[0][:1]] * padding)
            for parts in zip(*(image.model_inputs.conditioning for image in images), strict=True)
        )
        coefficients = [image.model_inputs.coefficients for image in images]
        slots = list[tuple[torch.Tensor, torch.Tensor]]()
        for slot in range(max(map(len, coefficients))):
            has_slot = [slot < len(coefficients_of_image) for coefficients_of_image in coefficients]
            row = [start + 1 + slot if is_used else start for start, is_used in zip(base_rows, has_slot, strict=True)]
            slot_coefficients = [
                each[slot] if has_coefficient else 0.0
                for each, has_coefficient in zip(coefficients, has_slot, strict=True)
            ]
            slots.append(
                (torch.tensor(row, device=device), torch.tensor(slot_coefficients, device=device).view(-1, 1, 1, 1))
            )
        pictures = tuple(gather_pictures(images, size, len(owner) // size))
        guidance = torch.tensor([image.model_inputs.guidance for image in images], device=device).view(-1, 1, 1, 1)
        rows_of_images = torch.tensor(owner, device=device), torch.tensor(base_rows, device=device)
        return cls(size, *rows_of_images, tuple(slots), guidance, conditioning, pictures)

    @cached_property
    def conditioning_by_forward(self) -> tuple[Conditioning, ...]:
        """The conditioning of each forward: the same tensors at every step, so the network can cache by identity."""
        return tuple(zip(*(torch.split(part, self.forward_rows) for part in self.conditioning), strict=True))

    def apply_guidance(self, out: torch.Tensor, measure_norm: MeasureNorm | None = None) -> torch.Tensor:
        """Return base + Σ coefficient·(row - base): classifier-free guidance (Ho & Salimans 2022) for any texts.

        From `[rows, channels, height, width]` to `[images, …]`. With `measure_norm`, the result gets the norm that it
        has at a guidance of 1.
        """
        base = guided = out[self.base]
        for row, coefficient in self.slots:
            guided = guided + coefficient * (out[row] - base)
        if measure_norm is None or not self.slots:
            return guided
        norm = measure_norm(guided)
        unguided_norm = measure_norm(base + (guided - base) / self.guidance)
        return torch.where((norm > 0) & (self.guidance > 1), guided * (unguided_norm / norm), guided)


@dataclass(frozen=True)
class Coefficients:
    """The current row of each image's plan, as one `[images, 1, 1, 1]` tensor for each name in `COLUMNS`."""

    columns: dict[str, torch.Tensor]

    @classmethod
    def build(cls, images: Sequence[Trajectory]) -> Coefficients:
        table = np.stack([image.plan.coefficients_at(image.k) for image in images], axis=1).astype(np.float32)
        tensor = copy_to_device(torch.from_numpy(table), images[0].x.device)
        return cls(dict(zip(COLUMNS, tensor.view(len(COLUMNS), -1, 1, 1, 1), strict=True)))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.columns[name]


def stack_noise(images: Sequence[Trajectory]) -> torch.Tensor | None:
    """Return the noise `[images, …]` of this row of each image's plan, float32; None if no image draws any."""
    if not any(image.plan.has_noise_draw(image.k) for image in images):
        return None
    draws = [
        image.noise.row_noise(image.k, image.plan) if image.plan.has_noise_draw(image.k) else None for image in images
    ]
    zeros = torch.zeros(images[0].x.shape)
    return copy_to_device(torch.stack([zeros if draw is None else draw for draw in draws]), images[0].x.device)


class Prediction(NamedTuple):
    """The result of a step for each image: the next latents and x0, `[images, …]`."""

    x: torch.Tensor
    x0: torch.Tensor


def predict(images: Sequence[Trajectory], x: torch.Tensor, out: torch.Tensor, coefficients: Coefficients) -> Prediction:
    """Return x0 = P·x + Q·out and x' = A·x + B·out + M·h + N·noise, for any mix of samplers; all are `[images, …]`."""
    x0 = coefficients["P"] * x + coefficients["Q"] * out
    next_x = coefficients["A"] * x + coefficients["B"] * out
    if any(image.h is not None for image in images):
        zeros = torch.zeros_like(images[0].x)
        next_x = next_x + coefficients["M"] * torch.stack([zeros if image.h is None else image.h for image in images])
    noise = stack_noise(images)
    return restore_unmasked(images, Prediction(next_x if noise is None else next_x + coefficients["N"] * noise, x0))


def restore_unmasked(images: Sequence[Trajectory], prediction: Prediction) -> Prediction:
    """Restore z outside the mask: in x' at the next step's noise level, in x0 clean.

    x' = m·x' + (1 - m)·(alpha·z + sigma·noise), as diffusers' inpainting does with a network that takes no mask.
    """
    if all(image.masked_source is None for image in images):
        return prediction
    zeros = torch.zeros_like(prediction.x[0])
    no_mask = MaskedSource(zeros, torch.ones_like(zeros[:1]), zeros)
    masked_sources = [image.masked_source or no_mask for image in images]
    clean, mask, source_noise = (torch.stack(list(part)) for part in zip(*masked_sources, strict=True))
    levels = [image.plan.noise_level(image.plan.next_step(image.k)) for image in images]
    alpha, sigma = copy_to_device(torch.tensor(levels), zeros.device).view(-1, 2, 1, 1, 1).unbind(1)
    is_painted = mask > 0
    return Prediction(
        torch.where(is_painted, prediction.x, alpha * clean + sigma * source_noise),
        torch.where(is_painted, prediction.x0, clean),
    )


def roll_tiles(x: torch.Tensor, images: Sequence[Trajectory], direction: int = 1) -> torch.Tensor:
    """Roll latents `[images, channels, height, width]` of tiles by their shifts in latents, or back (`direction` -1).

    All others stay as they are.
    """
    shifts = [image.shift for image in images]
    if all(shift is None for shift in shifts):
        return x
    pairs = zip(x, shifts, strict=True)
    return torch.stack(
        [
            latents if by is None else latents.roll((direction * by[0], direction * by[1]), (-2, -1))
            for latents, by in pairs
        ]
    )


class _Span(NamedTuple):
    """Rows of a picture in a forward: those in `rows` of its tensors, from the forward's row `start` on."""

    start: int
    rows: slice
    picture: PictureInput

    @property
    def row_count(self) -> int:
        return self.rows.stop - self.rows.start


def gather_pictures(images: Sequence[Trajectory], forward_rows: int, forwards: int) -> list[tuple[PictureRows, ...]]:
    """Return the pictures of each forward, a value for each slot, in a sequence that the slots alone decide.

    Padding rows have none. Pictures of one slot with tensors of other shapes stay apart. In a pinned batch shape every
    row takes part, those without the picture with zeros and a scale of 0: the bits must not depend on other images.
    """
    spans_by_forward: list[dict[tuple[object, ...], list[_Span]]] = [{} for _ in range(forwards)]
    first_row = 0
    for image in images:
        for picture in image.model_inputs.pictures:
            key = (*picture.slot, *(tensor.shape[1:] for tensor in picture.tensors))
            for number, span in _split_rows(picture, first_row, image.rows, forward_rows):
                spans_by_forward[number].setdefault(key, []).append(span)
        first_row += image.rows
    is_pinned = images[0].bucket is not None
    return [
        tuple(_join_spans(spans[key], forward_rows, is_pinned) for key in sorted(spans, key=repr))
        for spans in spans_by_forward
    ]


def _split_rows(picture: PictureInput, first_row: int, rows: int, forward_rows: int) -> list[tuple[int, _Span]]:
    """Return (forward, span) of an image's rows, which may reach over several forwards."""
    spans: list[tuple[int, _Span]] = []
    row = 0
    while row < rows:
        number, start = divmod(first_row + row, forward_rows)
        count = min(rows - row, forward_rows - start)
        spans.append((number, _Span(start, slice(row, row + count), picture)))
        row += count
    return spans


def _join_spans(spans: Sequence[_Span], forward_rows: int, is_pinned: bool) -> PictureRows:
    first = spans[0].picture
    rows = [span.start + number for span in spans for number in range(span.row_count)]
    scales = [span.picture.scale for span in spans for _ in range(span.row_count)]
    parts = zip(*([tensor[span.rows] for tensor in span.picture.tensors] for span in spans), strict=True)
    joined = PictureRows(
        first.slot,
        torch.tensor(rows, device=first.tensors[0].device),
        tuple(part[0] if len(part) == 1 else torch.cat(part) for part in parts),
        torch.tensor(scales, device=first.tensors[0].device),
        rows == list(range(forward_rows)),
        scales[0] if len({*scales}) == 1 else None,
        first.network,
    )
    return joined.fill(forward_rows) if is_pinned and not joined.is_whole else joined


# Powers of two and the numbers half-way between: padding is under a third of a forward, and shapes stay few.
BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class BatchLayouts:
    """`buckets`: the allowed batch shapes; few of them, because each is packed, recorded or compiled."""

    def __init__(self, buckets: Sequence[int], limits: BatchLimits) -> None:
        self._buckets = tuple(sorted(buckets))
        self._limits = limits
        self._last_layout: tuple[list[ModelInputs], RowLayout] | None = None

    @property
    def padded_rows(self) -> int:
        """Rows of the last layout, padding included."""
        return 0 if self._last_layout is None else len(self._last_layout[1].owner)

    @property
    def forward_shape(self) -> tuple[int, int]:
        """Rows per forward of the last layout, and its number of forwards."""
        size = 1 if self._last_layout is None else self._last_layout[1].forward_rows
        return size, max(1, -(-self.padded_rows // size))

    @property
    def has_pictures(self) -> bool:
        """Whether rows of the last layout have pictures beside their texts."""
        return self._last_layout is not None and any(self._last_layout[1].pictures_by_forward)

    def layout_for(self, batch: Sequence[Trajectory]) -> RowLayout:
        """Return the batch's layout; the cached one if no image joined, left or changed its inputs."""
        size = self.forward_rows(batch)
        model_inputs = [image.model_inputs for image in batch]
        cached = self._last_layout
        if cached is None or cached[1].forward_rows != size or not _are_same(cached[0], model_inputs):
            self._last_layout = cached = (model_inputs, RowLayout.build(batch, size))
        return cached[1]

    def forget(self) -> None:
        """Drop the last layout, since an image has left: its pictures and their networks need memory."""
        self._last_layout = None

    def forward_rows(self, batch: Sequence[Trajectory]) -> int:
        """Return the rows of a forward: the recipe's pinned shape, or the next bucket."""
        rows = min(sum(image.rows for image in batch), self._limits.limit_for(batch[0]))
        return batch[0].bucket or next((size for size in self._buckets if size >= rows), rows)


def _are_same(inputs: Sequence[ModelInputs], other_inputs: Sequence[ModelInputs]) -> bool:
    return len(inputs) == len(other_inputs) and all(
        input_a is input_b for input_a, input_b in zip(inputs, other_inputs, strict=True)
    )


def predict_batch(images: Sequence[Trajectory], layout: RowLayout, family: Family) -> Prediction:
    """Return the next latents and x0 of each image, and change none of them."""
    coefficients = Coefficients.build(images)
    latents = torch.stack([image.x for image in images])
    network_inputs = roll_tiles(coefficients["c"] * latents, images)[layout.owner]
    timesteps = coefficients["t"].flatten()[layout.owner]
    dtype = images[0].dtype
    loras = images[0].loras
    rows = zip(
        torch.split(network_inputs, layout.forward_rows),
        torch.split(timesteps, layout.forward_rows),
        layout.conditioning_by_forward,
        layout.pictures_by_forward,
        strict=True,
    )
    out = torch.cat([denoise(family, x, t, texts, dtype, loras, pictures) for x, t, texts, pictures in rows])
    measure_norm = family.measure_norm if isinstance(family, NormalizesGuidance) else None
    return predict(images, latents, roll_tiles(layout.apply_guidance(out, measure_norm), images, -1), coefficients)


# each costs about two evaluations
EVALUATIONS_PER_ESTIMATE = 50
MAX_ESTIMATES = 3
SHOWN_SHARE = 1 / 3  # of an image's steps
FIRST_EVALUATIONS = 2  # the first one sets a job's pace, by which its remaining time is told


class EndEstimator:
    """Previews of the likely end: what the model's turbo LoRA makes of an image's latents while the noise is high.

    In the first third of many steps the network's own x0 is a blur. A consistency model maps the same latents to their
    end in one forward (Song et al. 2023). The estimate is only shown: latents, noise and keyframes stay what they are.
    Only for small models on a processor: elsewhere the LoRA would take memory, and a forward with it is slow.
    """

    def __init__(self, families: Mapping[str, Family]) -> None:
        self._families = families
        self._failed_models = set[str]()

    def estimate(self, batch: Sequence[Trajectory]) -> bool:
        """Estimate the ends of those images of a batch that are due. Return whether there are any."""
        images = [image for image in batch if _is_due(image)]
        family = self._families[batch[0].model]
        if not images or family.name in self._failed_models or not _can_estimate(family):
            return False
        try:
            for image, end in zip(images, _predict_ends(images, family), strict=True):
                image.likely_end = end
        except JobRejected:  # the model has no turbo LoRA
            return False
        except Exception:  # no picture depends on it
            log.exception("%s: no previews of the likely end", family.name)
            self._failed_models.add(family.name)
        return True


def choose_preview(image: Trajectory, x0: torch.Tensor) -> torch.Tensor:
    """Return the latents that a preview shows: the likely end while the noise is high, then x0."""
    is_early = image.k - image.recipe.first_step <= _count_early_steps(image)
    return x0 if image.likely_end is None or not is_early else image.likely_end


def _count_early_steps(image: Trajectory) -> int:
    return int((image.end_step - image.recipe.first_step) * SHOWN_SHARE)


def _is_due(image: Trajectory) -> bool:
    """Return whether an estimate is due after this step, for an image of one row that begins with noise alone."""
    recipe = image.recipe
    is_one_row = (recipe.mixed or len(recipe.concepts) == 1) and not has_negative_weight(recipe)
    has_pictures = recipe.start is not None or bool(recipe.controls or recipe.references)
    if not recipe.shows_image(image.image) or has_pictures or recipe.loras or not is_one_row:
        return False
    plan = image.plan
    row = image.plan.row_at(image.k)
    estimate_count = min(MAX_ESTIMATES, plan.row_at(image.end_step) // EVALUATIONS_PER_ESTIMATE)
    first_step = plan.row_steps[min(FIRST_EVALUATIONS, len(plan.table))]
    steps = (first_step + n * _count_early_steps(image) // estimate_count for n in range(estimate_count))
    return any(plan.row_steps[row - 1] < step <= image.k for step in steps)


def _can_estimate(family: Family) -> bool:
    return family.size <= SMALL_MODEL_SIZE and family.device.type == "cpu" and TURBO_SAMPLER in family.samplers


def _predict_ends(images: Sequence[Trajectory], family: Family) -> torch.Tensor:
    """Return x0 = P·x + Q·out of each image, by the network with the LoRA and without guidance.

    Raises `JobRejected` if there is no such LoRA.
    """
    if not isinstance(family, TakesLoras):
        raise JobRejected(f"{family.name} takes no LoRAs.", "model")
    turbo_recipe = family.with_loras(msgspec.structs.replace(images[0].recipe, loras=(Lora(TURBO_LORA),)))
    coefficients = Coefficients.build(images)
    x = torch.stack([image.x for image in images])
    conditionings = [build_conditioning(image.recipe, family, is_guidance_on=False)[0] for image in images]
    conditioning = tuple(torch.cat(parts) for parts in zip(*conditionings, strict=True))
    rolled = roll_tiles(coefficients["c"] * x, images)
    t = coefficients["t"].flatten()
    out = family.denoise(rolled, t, conditioning, images[0].dtype, turbo_recipe.loras)
    return coefficients["P"] * x + coefficients["Q"] * roll_tiles(out, images, -1)
