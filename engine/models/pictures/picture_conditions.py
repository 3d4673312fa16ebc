"""Picture conditions: pictures beside the prompt (control, reference, inpainting), as a model's networks take them.

An image has a `PictureCondition` for each of its pictures. A forward has `PictureRows` for each slot: those of its rows
that have a picture there, whatever images they belong to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from PIL import Image

SlotKind = Literal["control", "adapter", "reference", "inpaint"]
OpenPicture = Callable[[str], Image.Image]  # returns the picture (RGB) of a SHA-256; raises `JobRejected`


class PictureSlot(NamedTuple):
    """What a picture is for, and by which network. Rows of a forward with equal slots run together.

    `number` tells pictures of one image apart that are for the same network.
    """

    kind: SlotKind
    name: str = ""
    revision: str = ""
    number: int = 0


@dataclass(frozen=True, eq=False)
class PictureCondition:
    """One picture of an image. `tensors` have no dimension of rows, and are on the device.

    `unconditional_tensors` take their place in the row of the empty or negative text; None: the same. It holds between
    `start` and `stop`, fractions of the steps. `network`: the one that the slot names, which stays in memory with it.
    """

    slot: PictureSlot
    tensors: tuple[torch.Tensor, ...]
    scale: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    unconditional_tensors: tuple[torch.Tensor, ...] | None = None
    network: object = None

    def is_active(self, step: int, steps: int) -> bool:
        """Return whether it holds at this step of `steps`, counted as diffusers' control pipelines do."""
        return self.scale != 0 and not (step / steps < self.start or (step + 1) / steps > self.stop)


PictureConditions = tuple[PictureCondition, ...]


@dataclass(frozen=True, eq=False)
class PictureRows:
    """The rows of one forward that have a picture in `slot`: their numbers, tensors `[n, …]` and scales `[n]`.

    `is_whole`: they are all rows of the forward, in sequence. `common_scale`: of all these rows; None: they differ.
    """

    slot: PictureSlot
    rows: torch.Tensor
    tensors: tuple[torch.Tensor, ...]
    scales: torch.Tensor
    is_whole: bool
    common_scale: float | None
    network: object = None

    def select(self, batch: torch.Tensor) -> torch.Tensor:
        """Return these rows of a forward's tensor."""
        return batch if self.is_whole else batch[self.rows]

    def spread(self, values: torch.Tensor, row_count: int) -> torch.Tensor:
        """Return these rows' values as `[row_count, …]`, with zeros in the other rows."""
        if self.is_whole:
            return values
        return values.new_zeros(row_count, *values.shape[1:]).index_copy(0, self.rows, values)

    def scale(self, values: torch.Tensor) -> torch.Tensor:
        """Return these rows' values times their scales, in their number format, rounded once."""
        if self.common_scale is not None:
            return values if self.common_scale == 1.0 else values * self.common_scale
        return (values * self.scales.view(-1, *(1,) * (values.dim() - 1))).to(values.dtype)

    def fill(self, row_count: int) -> PictureRows:
        """Return the same for all rows of the forward: the others get zeros, and a scale of 0."""
        return PictureRows(
            self.slot,
            torch.arange(row_count, device=self.rows.device),
            tuple(self.spread(tensor, row_count) for tensor in self.tensors),
            self.spread(self.scales, row_count),
            True,
            None,
            self.network,
        )
