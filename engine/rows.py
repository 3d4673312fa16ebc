"""Batch math: rows for the network, guidance on its output, one fused update for every sampler. Tensors only.

Each image depends on its own rows alone (no sum runs over the batch), so a non-finite row spoils only its own image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from engine.families.family import Conditions
from engine.plan import COLUMNS
from engine.trajectory import Ground, Trajectory
from engine.transfer import onto


@dataclass(frozen=True)
class Layout:
    """The rows of each image. Rebuilt only when the batch changes.

    `owner[r]` is the image of row r; `base[i]` is the first row of image i. `slots` holds, for the first, second, …
    further text, (row of each image, coefficient of each image). An image without that text points at its base with
    coefficient 0. Copies of the first row pad the rows to a multiple of `size`, the rows of a forward.
    """

    size: int

    owner: torch.Tensor
    base: torch.Tensor
    slots: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    texts: Conditions

    @classmethod
    def of(cls, images: Sequence[Trajectory], size: int) -> Layout:
        device = images[0].x.device
        *starts, rows = [0, *accumulate(image.rows for image in images)]
        padding = -rows % size
        owner = [number for number, image in enumerate(images) for _ in range(image.rows)] + [0] * padding
        texts = tuple(
            torch.cat([*parts] + [parts[0][:1]] * padding)
            for parts in zip(*(image.asked.texts for image in images), strict=True)
        )
        steers = [image.asked.steer for image in images]
        slots = []
        for slot in range(max(map(len, steers))):
            has = [slot < len(each) for each in steers]
            row = [start + 1 + slot if there else start for start, there in zip(starts, has, strict=True)]
            steer = [each[slot] if there else 0.0 for each, there in zip(steers, has, strict=True)]
            slots.append((torch.tensor(row, device=device), torch.tensor(steer, device=device).view(-1, 1, 1, 1)))
        return cls(size, torch.tensor(owner, device=device), torch.tensor(starts, device=device), tuple(slots), texts)

    @cached_property
    def told(self) -> tuple[Conditions, ...]:
        """The conditioning of each forward: the same tensors at every step, so the network can cache by identity."""
        return tuple(zip(*(part.split(self.size) for part in self.texts), strict=True))

    def guide(self, out: torch.Tensor) -> torch.Tensor:
        """Return base + Σ steer·(row - base): classifier-free guidance (Ho & Salimans 2022) for any number of texts."""
        base = guided = out[self.base]
        for row, steer in self.slots:
            guided = guided + steer * (out[row] - base)
        return guided


@dataclass(frozen=True)
class Coefficients:
    """The current row of each image's plan, as one `[images, 1, 1, 1]` tensor for each name in `COLUMNS`."""

    columns: dict[str, torch.Tensor]

    @classmethod
    def of(cls, images: Sequence[Trajectory]) -> Coefficients:
        table = np.stack([image.plan.table[image.k] for image in images], axis=1).astype(np.float32)
        tensor = onto(torch.from_numpy(table), images[0].x.device)
        return cls(dict(zip(COLUMNS, tensor.view(len(COLUMNS), -1, 1, 1, 1), strict=True)))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.columns[name]


def stack_noise(images: Sequence[Trajectory]) -> torch.Tensor | None:
    """Return the noise of this step, or None if no image draws any."""
    if not any(image.plan.draws_noise(image.k) for image in images):
        return None
    drawn = [image.noise.at(image.k, image.plan) if image.plan.draws_noise(image.k) else None for image in images]
    nothing = torch.zeros(images[0].x.shape)
    return onto(torch.stack([nothing if each is None else each for each in drawn]), images[0].x.device)


class Prediction(NamedTuple):
    """The result of a step for each image: the next latents and x0, `[images, …]`."""

    x: torch.Tensor
    x0: torch.Tensor


def predict(images: Sequence[Trajectory], x: torch.Tensor, out: torch.Tensor, at: Coefficients) -> Prediction:
    """Return x0 = P·x + Q·out and x' = A·x + B·out + M·h + N·noise, for any mix of samplers."""
    x0 = at["P"] * x + at["Q"] * out
    moved = at["A"] * x + at["B"] * out
    if any(image.h is not None for image in images):
        nothing = torch.zeros_like(images[0].x)
        moved = moved + at["M"] * torch.stack([nothing if image.h is None else image.h for image in images])
    noise = stack_noise(images)
    return kept(images, Prediction(moved if noise is None else moved + at["N"] * noise, x0))


def kept(images: Sequence[Trajectory], made: Prediction) -> Prediction:
    """Restore z outside the mask: in x' at the next step's noise level, in x0 clean.

    x' = m·x' + (1 - m)·(alpha·z + sigma·noise), as diffusers' inpainting does with a network that takes no mask.
    """
    if all(image.ground is None for image in images):
        return made
    nothing = torch.zeros_like(made.x[0])
    none = Ground(nothing, torch.ones_like(nothing[:1]), nothing)
    grounds = [image.ground or none for image in images]
    clean, mask, drawn = (torch.stack(list(part)) for part in zip(*grounds, strict=True))
    levels = onto(torch.tensor([image.plan.level(image.k + 1) for image in images]), nothing.device)
    alpha, sigma = levels.view(-1, 2, 1, 1, 1).unbind(1)
    new = mask > 0
    return Prediction(torch.where(new, made.x, alpha * clean + sigma * drawn), torch.where(new, made.x0, clean))


def turned(x: torch.Tensor, images: Sequence[Trajectory], way: int = 1) -> torch.Tensor:
    """Roll the latents of tiles by their shifts, or back (`way` -1); leave all others as they are."""
    shifts = [image.shift for image in images]
    if all(by is None for by in shifts):
        return x
    pairs = zip(x, shifts, strict=True)
    return torch.stack([one if by is None else one.roll((way * by[0], way * by[1]), (-2, -1)) for one, by in pairs])
