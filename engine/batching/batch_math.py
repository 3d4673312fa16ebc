"""Batch math: rows for the network, guidance on its output, one fused update for every sampler. Tensors only.

Each image depends on its own rows alone (no sum runs over the batch), so a non-finite row spoils only its own image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from engine.batching.picture_gathering import gather_pictures
from engine.batching.trajectory import MaskedSource, Trajectory
from engine.device.torch_device import copy_to_device
from engine.models.family import Conditioning
from engine.models.pictures.picture_conditions import PictureRows
from engine.sampling import COLUMNS

MeasureNorm = Callable[[torch.Tensor], torch.Tensor]  # `NormalizesGuidance.measure_norm`


@dataclass(frozen=True)
class RowLayout:
    """The rows of each image. Rebuilt only when the batch changes.

    `owner[r]` is the image of row r; `base[i]` is the first row of image i. `slots` holds, for the first, second, …
    further text, (row of each image, coefficient of each image). An image without that text points at its base with
    coefficient 0. Copies of the first row pad the rows to a multiple of `size`, the rows of a forward. `guidance` is
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

        With `measure_norm`, the result gets the norm that it has at a guidance of 1.
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
    """Return the noise of this row of each image's plan, or None if no image draws any."""
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
    """Return x0 = P·x + Q·out and x' = A·x + B·out + M·h + N·noise, for any mix of samplers."""
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
    """Roll the latents of tiles by their shifts, or back (`direction` -1); leave all others as they are."""
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
