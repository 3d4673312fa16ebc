"""Generates many pictures with the engine's own text encoding, plan and autoencoder. Knows no judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.families.family import Worded
from engine.job import Dtype, Sampler
from engine.plan import plan
from engine.sampling import develop, drawing_of, initial

ROWS = 64  # of a forward: a larger batch gains nothing on a processor


@dataclass(frozen=True)
class Painter:
    """Generates pictures of one family. `told` is called with the finished and the total number of steps."""

    family: Worded
    dtype: Dtype
    told: Callable[[int, int], None] = lambda done, of: None
    steps: int = 25
    sampler: Sampler = "dpmpp_2m"

    def pictures(
        self, prompts: Sequence[str], seeds: Sequence[int], guidance: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Draw uint8 [n, h, w, 3] before upscaling, one prompt and seed a picture; guidance defaults to the model's."""
        latents = self.latents(prompts, seeds, guidance, interval)
        return np.stack([np.asarray(self.family.decode(one).convert("RGB")) for one in latents])

    def latents(
        self, prompts: Sequence[str], seeds: Sequence[int], guidance: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> Tensor:  # fmt: skip
        """Draw the latents of each prompt and seed: [n, channels, h, w]."""
        family = self.family
        strength = family.guidance if guidance is None else guidance
        held = family.interval if interval is None else interval
        table = plan(family.scheduler_config, self.sampler, self.steps)
        drawings = [
            drawing_of(family, family.encode(prompt), strength, table.init_sigma * initial(family, seed), held)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return torch.stack(develop(family, table, drawings, seen=self.told, dtype=self.dtype, rows=ROWS))
