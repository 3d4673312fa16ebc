"""The events of an engine step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.job import Blame, Dtype
from engine.trajectory import LatentRung


@dataclass(frozen=True)
class Stepped:
    """Image `image` has done `k` of `of` steps. `x0` is set if the job is watched."""

    job: str
    image: int
    k: int
    of: int
    x0: torch.Tensor | None = None


@dataclass(frozen=True)
class Developed:
    """The image's latents are finished and need to be decoded."""

    job: str
    image: int
    latents: torch.Tensor
    rungs: tuple[LatentRung, ...]


@dataclass(frozen=True)
class Failed:
    """The job failed and left the engine with all of its images."""

    job: str
    reason: str
    blame: Blame


Event = Stepped | Developed | Failed


@dataclass(frozen=True)
class Ran:
    """The batch of a step: `forwards` forwards of `rows` rows each. `waited`: the device has finished them."""

    model: str
    dtype: Dtype
    rows: int
    forwards: int
    shape: tuple[int, ...]
    loras: bool
    waited: bool

    @property
    def alike(self) -> tuple[object, ...]:
        """A key that is equal for batches whose forwards take equally long."""
        return self.model, self.dtype, self.rows, self.shape, self.loras
