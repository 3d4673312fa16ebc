"""Sampling by a plan's table, from noise and embeddings to latents, without jobs: for the lab and the evaluation.

The engine takes prompts, and jobs that come and go. A point between two prompts has no text, and a batch of a thousand
evaluation pictures needs no fair order. It accepts only plans that draw no noise on the way (DDIM, DPM++ 2M): two
pictures then differ only by their texts or their start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.families.family import Family, Worded
from engine.job import ALL_ALONG, Dtype, within
from engine.plan import COLUMNS, Plan
from engine.unfit import Unfit

ROWS = 16  # of a forward over latents of the embedded model's size or smaller
CELLS = 16 * 16  # latents of a row at that size; larger rows need more memory, so fewer share a forward
Seen = Callable[[int, int], None]  # (steps done, of)


@dataclass(frozen=True)
class Drawing:
    """One picture to sample: its start, and its texts `[rows, tokens, features]`, the base first.

    `steer` has a coefficient for each further text: out = base + Σ steer·(row - base). That holds in the steps of
    `interval`, a pair of fractions; elsewhere only the last text is predicted (Kynkäänniemi et al. 2024).
    """

    start: torch.Tensor
    texts: torch.Tensor
    steer: tuple[float, ...]
    interval: tuple[float, float] = ALL_ALONG

    def at(self, k: int, steps: int) -> tuple[torch.Tensor, tuple[float, ...]]:
        """Return the texts and coefficients of step `k`."""
        return (self.texts, self.steer) if within(self.interval, k, steps) else (self.texts[-1:], ())


def initial(family: Family, seed: int) -> torch.Tensor:
    """Return a seed's noise at the native size, as the engine and diffusers draw it."""
    return torch.randn(family.latent_shape(family.size, family.size), generator=torch.Generator().manual_seed(seed))


def drawing_of(
    family: Worded, text: torch.Tensor, guidance: float, start: torch.Tensor,
    interval: tuple[float, float] = ALL_ALONG,
) -> Drawing:  # fmt: skip
    """Return one text with classifier-free guidance; at guidance 1 the empty text cancels out."""
    if guidance == 1:
        return Drawing(start, text[None], ())
    return Drawing(start, torch.stack([family.encode(""), text]), (guidance,), interval)


@torch.inference_mode()
def develop(
    family: Family, steps: Plan, drawings: Sequence[Drawing], first: int = 0, seen: Seen = lambda done, of: None,
    *, dtype: Dtype = "float32", rows: int = ROWS,
) -> list[torch.Tensor]:  # fmt: skip
    """Return the finished latents of each drawing. `first`: the step at which their start stands (0: pure noise)."""
    if steps.table[:, COLUMNS.index("N")].any() or (first and steps.keeps_history):
        raise ValueError("This plan draws noise on the way, or needs a step from before the start.")
    finished: list[torch.Tensor] = []
    batches, each = _batches(drawings, rows), steps.steps - first
    for number, batch in enumerate(batches):
        x = torch.stack([one.start for one in batch]).to(family.device)
        before = torch.zeros_like(x)
        for k in range(first, steps.steps):
            x, before = _step(family, steps, k, x, before, batch, dtype)
            seen(number * each + k - first + 1, len(batches) * each)
        if not x.isfinite().all():
            raise Unfit(
                "The picture came out as numbers that are not finite: smaller weights in its prompt may help.", "member"
            )
        finished += list(x)
    return finished


@torch.inference_mode()
def estimate(family: Family, steps: Plan, k: int, drawing: Drawing) -> torch.Tensor:
    """Return the x0 that the network predicts from the drawing's start at step `k`."""
    x = drawing.start[None].to(family.device)
    return _step(family, steps, k, x, torch.zeros_like(x), [drawing], "float32")[1][0]


def level(steps: Plan, k: int) -> tuple[float, float]:
    """Return (alpha, sigma) of step `k`: x = alpha·x0 + sigma·noise."""
    row = dict(zip(COLUMNS, steps.table[k].tolist(), strict=True))
    return row["alpha"], row["sigma"]


def timestep(steps: Plan, k: int) -> int:
    return int(steps.table[k, COLUMNS.index("t")])


def _step(
    family: Family, steps: Plan, k: int, x: torch.Tensor, before: torch.Tensor, batch: Sequence[Drawing], dtype: Dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (x', x0) of each drawing after step `k`; `before` is the previous step's x0."""
    at = dict(zip(COLUMNS, steps.table[k].astype(np.float32).tolist(), strict=True))
    told = [one.at(k, steps.steps) for one in batch]
    counts = [len(texts) for texts, _ in told]
    rows = (at["c"] * x).repeat_interleave(torch.tensor(counts, device=x.device), dim=0)
    times = torch.full((len(rows),), at["t"], device=x.device)
    texts = torch.cat([texts for texts, _ in told]).to(x.device)
    out = family.denoise(rows, times, (texts,), dtype).split(counts)
    guided = torch.stack([_guided(each, steer) for each, (_, steer) in zip(out, told, strict=True)])
    return at["A"] * x + at["B"] * guided + at["M"] * before, at["P"] * x + at["Q"] * guided


def _guided(out: torch.Tensor, steer: tuple[float, ...]) -> torch.Tensor:
    """Return classifier-free guidance (Ho & Salimans 2022) for any number of texts (Liu et al. 2022, equation 11)."""
    base = guided = out[0]
    for row, much in zip(out[1:], steer, strict=True):
        guided = guided + much * (row - base)
    return guided


def _batches(drawings: Sequence[Drawing], rows: int) -> list[list[Drawing]]:
    """Group the drawings in order, as `rows` and their size allow; a larger one gets its own batch."""
    batches: list[list[Drawing]] = []
    for drawing in drawings:
        most = min(rows, rows * CELLS // (drawing.start.shape[-2] * drawing.start.shape[-1]))
        if batches and sum(len(one.texts) for one in batches[-1]) + len(drawing.texts) <= most:
            batches[-1].append(drawing)
        else:
            batches.append([drawing])
    return batches
