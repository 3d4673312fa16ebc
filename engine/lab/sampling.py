"""From noise and token states to latents: DDIM by the plan's table, for texts that nobody typed.

The engine takes words; a mix or a point between two prompts has none, so the lab runs the same table over its own
rows. DDIM without chance: what differs between two pictures comes from the words or the start alone, and since a step
needs nothing but the latents before it, one can begin anywhere on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.families.family import Family
from engine.job import MAX_STEPS
from engine.plan import COLUMNS, Plan, plan
from engine.unfit import Unfit

ROWS = 16  # of a forward pass over latents of the embedded model's size, or smaller ones
CELLS = ROWS * 16 * 16  # of a forward pass over larger ones: what a network needs in memory grows with them
Seen = Callable[[int, int], None]  # (steps done, of)


@dataclass(frozen=True)
class Drawing:
    """One picture to be: where it starts, and its texts `[rows, tokens, features]`, the base first.

    `steer` has a number for each further text: out = base + Σ steer·(row - base).
    """

    start: torch.Tensor
    texts: torch.Tensor
    steer: tuple[float, ...]


def table(family: Family, steps: int) -> Plan:
    """The DDIM plan of this model's schedule. Raises `Unfit`."""
    if not 1 <= steps <= MAX_STEPS:
        raise Unfit(f"--steps may be 1 to {MAX_STEPS}; {steps} is not.", "member")
    try:
        return plan(family.scheduler_config, "ddim", steps)
    except ValueError as error:
        raise Unfit(str(error), "model") from error


def initial(family: Family, seed: int) -> torch.Tensor:
    """The noise of a seed, as the engine and diffusers draw it, at the model's native size."""
    return torch.randn(family.latent_shape(family.size, family.size), generator=torch.Generator().manual_seed(seed))


def told(family: Family, text: torch.Tensor, guidance: float, start: torch.Tensor) -> Drawing:
    """One text with classifier-free guidance; at guidance 1 the empty text cancels out."""
    if guidance == 1:
        return Drawing(start, text[None], ())
    return Drawing(start, torch.stack([family.encode(""), text]), (guidance,))


@torch.inference_mode()
def develop(
    family: Family, steps: Plan, drawings: Sequence[Drawing], first: int = 0, seen: Seen = lambda done, of: None
) -> list[torch.Tensor]:
    """The finished latents of every drawing; `first` is the step at which their start stands (0: pure noise)."""
    finished: list[torch.Tensor] = []
    batches, each = _batches(drawings), steps.steps - first
    for number, batch in enumerate(batches):
        x = torch.stack([one.start for one in batch]).to(family.device)
        for k in range(first, steps.steps):
            x, _ = _step(family, steps, k, x, batch)
            seen(number * each + k - first + 1, len(batches) * each)
        if not x.isfinite().all():
            raise Unfit("The picture came out as numbers that are not finite; smaller weights may help.", "member")
        finished += list(x)
    return finished


@torch.inference_mode()
def estimate(family: Family, steps: Plan, k: int, drawing: Drawing) -> torch.Tensor:
    """What the network takes the finished latents to be, seen from the drawing's start at step `k`."""
    return _step(family, steps, k, drawing.start[None].to(family.device), [drawing])[1][0]


def level(steps: Plan, k: int) -> tuple[float, float]:
    """(alpha, sigma) of step `k`: x = alpha·x0 + sigma·noise."""
    row = dict(zip(COLUMNS, steps.table[k].tolist(), strict=True))
    return row["alpha"], row["sigma"]


def timestep(steps: Plan, k: int) -> int:
    return int(steps.table[k, COLUMNS.index("t")])


def _step(
    family: Family, steps: Plan, k: int, x: torch.Tensor, batch: Sequence[Drawing]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x', x0) of every drawing after step `k`."""
    at = dict(zip(COLUMNS, steps.table[k].astype(np.float32).tolist(), strict=True))
    counts = [len(one.texts) for one in batch]
    rows = (at["c"] * x).repeat_interleave(torch.tensor(counts, device=x.device), dim=0)
    times = torch.full((len(rows),), at["t"], device=x.device)
    texts = torch.cat([one.texts for one in batch]).to(x.device)
    out = family.denoise(rows, times, texts, "float32").split(counts)
    guided = torch.stack([_guided(each, one.steer) for each, one in zip(out, batch, strict=True)])
    return at["A"] * x + at["B"] * guided, at["P"] * x + at["Q"] * guided


def _guided(out: torch.Tensor, steer: tuple[float, ...]) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022) for any number of texts (Liu et al. 2022, equation 11)."""
    base = guided = out[0]
    for row, much in zip(out[1:], steer, strict=True):
        guided = guided + much * (row - base)
    return guided


def _batches(drawings: Sequence[Drawing]) -> list[list[Drawing]]:
    """In order, as many as fit into `ROWS` and `CELLS`; a single larger one goes alone."""
    batches: list[list[Drawing]] = []
    for drawing in drawings:
        most = min(ROWS, CELLS // (drawing.start.shape[-2] * drawing.start.shape[-1]))
        if batches and sum(len(one.texts) for one in batches[-1]) + len(drawing.texts) <= most:
            batches[-1].append(drawing)
        else:
            batches.append([drawing])
    return batches
