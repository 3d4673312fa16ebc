"""From noise and token states to latents by a plan's table, without jobs: for the lab and the evaluation.

The engine takes words, and jobs that come and go. A mix or a point between two prompts has no words, and a thousand
pictures that nobody waits for need no fair order. For plans that draw no noise on the way (DDIM, DPM++ 2M): what
differs between two pictures comes from the words or the start alone. Knows the plan's columns; no jobs and no files.
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

ROWS = 16  # of a forward pass over latents of the embedded model's size, or smaller ones
CELLS = 16 * 16  # of a row at that size: of larger ones fewer go together, for what they need in memory
Seen = Callable[[int, int], None]  # (steps done, of)


@dataclass(frozen=True)
class Drawing:
    """One picture to be: where it starts, and its texts `[rows, tokens, features]`, the base first.

    `steer` has a number for each further text: out = base + Σ steer·(row - base). So it is in the steps of `interval`,
    as fractions of them all; in the others the last text speaks alone (Kynkäänniemi et al. 2024).
    """

    start: torch.Tensor
    texts: torch.Tensor
    steer: tuple[float, ...]
    interval: tuple[float, float] = ALL_ALONG

    def at(self, k: int, steps: int) -> tuple[torch.Tensor, tuple[float, ...]]:
        """The texts and the steer of step `k`."""
        return (self.texts, self.steer) if within(self.interval, k, steps) else (self.texts[-1:], ())


def initial(family: Family, seed: int) -> torch.Tensor:
    """The noise of a seed, as the engine and diffusers draw it, at the model's native size."""
    return torch.randn(family.latent_shape(family.size, family.size), generator=torch.Generator().manual_seed(seed))


def drawing_of(
    family: Worded, text: torch.Tensor, guidance: float, start: torch.Tensor,
    interval: tuple[float, float] = ALL_ALONG,
) -> Drawing:  # fmt: skip
    """One text with classifier-free guidance; at guidance 1 the empty text cancels out."""
    if guidance == 1:
        return Drawing(start, text[None], ())
    return Drawing(start, torch.stack([family.encode(""), text]), (guidance,), interval)


@torch.inference_mode()
def develop(
    family: Family, steps: Plan, drawings: Sequence[Drawing], first: int = 0, seen: Seen = lambda done, of: None,
    *, dtype: Dtype = "float32", rows: int = ROWS,
) -> list[torch.Tensor]:  # fmt: skip
    """The finished latents of every drawing; `first` is the step at which their start stands (0: pure noise)."""
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
                "The picture came out as numbers that are not finite: smaller weights of its words may help.", "member"
            )
        finished += list(x)
    return finished


@torch.inference_mode()
def estimate(family: Family, steps: Plan, k: int, drawing: Drawing) -> torch.Tensor:
    """What the network takes the finished latents to be, seen from the drawing's start at step `k`."""
    x = drawing.start[None].to(family.device)
    return _step(family, steps, k, x, torch.zeros_like(x), [drawing], "float32")[1][0]


def level(steps: Plan, k: int) -> tuple[float, float]:
    """(alpha, sigma) of step `k`: x = alpha·x0 + sigma·noise."""
    row = dict(zip(COLUMNS, steps.table[k].tolist(), strict=True))
    return row["alpha"], row["sigma"]


def timestep(steps: Plan, k: int) -> int:
    return int(steps.table[k, COLUMNS.index("t")])


def _step(
    family: Family, steps: Plan, k: int, x: torch.Tensor, before: torch.Tensor, batch: Sequence[Drawing], dtype: Dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x', x0) of every drawing after step `k`; `before` is the x0 of the step before."""
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
    """Classifier-free guidance (Ho & Salimans 2022) for any number of texts (Liu et al. 2022, equation 11)."""
    base = guided = out[0]
    for row, much in zip(out[1:], steer, strict=True):
        guided = guided + much * (row - base)
    return guided


def _batches(drawings: Sequence[Drawing], rows: int) -> list[list[Drawing]]:
    """In order, as many as `rows` and their size allow; a single larger one goes alone."""
    batches: list[list[Drawing]] = []
    for drawing in drawings:
        most = min(rows, rows * CELLS // (drawing.start.shape[-2] * drawing.start.shape[-1]))
        if batches and sum(len(one.texts) for one in batches[-1]) + len(drawing.texts) <= most:
            batches[-1].append(drawing)
        else:
            batches.append([drawing])
    return batches
