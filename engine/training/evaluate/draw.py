"""Pictures of the model, many at once, by the engine's own text encoding, plan and autoencoder. Knows no judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.families.family import Family
from engine.job import Dtype, Sampler
from engine.plan import COLUMNS, plan

ROWS = 64  # of a forward: beyond that a larger batch gains nothing on a processor


@dataclass(frozen=True)
class Painter:
    """`told` hears how many of how many pictures are done."""

    family: Family
    dtype: Dtype
    told: Callable[[int, int], None] = lambda done, of: None
    steps: int = 25
    sampler: Sampler = "dpmpp_2m"

    def pictures(self, prompts: Sequence[str], seeds: Sequence[int], guidance: float | None = None) -> np.ndarray:
        """uint8 [n, h, w, 3], each before it is enlarged: one prompt and one seed a picture."""
        latents = self.latents(prompts, seeds, guidance)
        return np.stack([np.asarray(self.family.decode(one).convert("RGB")) for one in latents])

    def latents(self, prompts: Sequence[str], seeds: Sequence[int], guidance: float | None = None) -> Tensor:
        """What each prompt becomes from each seed: [n, channels, h, w]."""
        strength = self.family.guidance if guidance is None else guidance
        batch = ROWS // 2 if strength != 1 else ROWS
        made: list[Tensor] = []
        for start in range(0, len(prompts), batch):
            span = slice(start, start + batch)
            made.append(self._batch(prompts[span], seeds[span], strength))
            self.told(min(span.stop, len(prompts)), len(prompts))
        return torch.cat(made)

    def _batch(self, prompts: Sequence[str], seeds: Sequence[int], strength: float) -> Tensor:
        texts = torch.stack([self.family.encode(prompt) for prompt in prompts])
        empty = self.family.encode("").expand_as(texts)
        table = plan(self.family.scheduler_config, self.sampler, self.steps)
        shape = self.family.latent_shape(self.family.size, self.family.size)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        x = torch.stack(drawn).to(self.family.device) * table.init_sigma
        before = torch.zeros_like(x)
        for row in table.table:
            at = {name: float(value) for name, value in zip(COLUMNS, row, strict=True)}
            guess = self._guess(at["c"] * x, at["t"], texts, empty, strength)
            clean = at["P"] * x + at["Q"] * guess
            x, before = at["A"] * x + at["B"] * guess + at["M"] * before, clean
        return x

    def _guess(self, x: Tensor, time: float, texts: Tensor, empty: Tensor, strength: float) -> Tensor:
        if strength == 1:
            return self.family.denoise(x, torch.full((len(x),), time, device=x.device), texts, self.dtype)
        times = torch.full((2 * len(x),), time, device=x.device)
        without, towards = self.family.denoise(
            x.repeat(2, 1, 1, 1), times, torch.cat([empty, texts]), self.dtype
        ).chunk(2)
        return without + strength * (towards - without)
