"""The events of an engine step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.batching.trajectory import LatentKeyframe
from engine.contract import Blame, Dtype


@dataclass(frozen=True)
class StepDone:
    """Image `image` has done `step` of `total_steps` steps. `x0` is set if the job is watched."""

    job: str
    image: int
    step: int
    total_steps: int
    x0: torch.Tensor | None = None


@dataclass(frozen=True)
class LatentsDone:
    """The image's latents are finished and need to be decoded."""

    job: str
    image: int
    latents: torch.Tensor
    keyframes: tuple[LatentKeyframe, ...]


@dataclass(frozen=True)
class JobFailure:
    """The job failed and left the engine with all of its images."""

    job: str
    reason: str
    blame: Blame


Event = StepDone | LatentsDone | JobFailure


@dataclass(frozen=True)
class BatchRun:
    """The batch of a step: `forward_count` forwards of `rows` rows each. `is_synchronised`: the device is done.

    `has_additions`: LoRAs or pictures take time beside the network.
    """

    model: str
    dtype: Dtype
    rows: int
    forward_count: int
    shape: tuple[int, ...]
    has_additions: bool
    is_synchronised: bool

    @property
    def timing_key(self) -> tuple[object, ...]:
        """A key that is equal for batches whose forwards take equally long."""
        return self.model, self.dtype, self.rows, self.shape, self.has_additions
