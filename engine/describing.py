"""How well texts predict the noise in a picture: a diffusion classifier (Li et al. 2023, arXiv 2303.16203).

The picture's latents are noised a few times, each time by its own noise to its own level; the network is told a text
and asked for what was added. The text under which it errs least describes the picture best, of those that were tried.
Every text is asked with the same noises: what differs between two errors is the texts' doing alone. Knows a family and
a plan's columns; nothing of which thread it runs in, nor of where texts come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from engine.families.family import Conditions, Family
from engine.job import Concept, Dtype, Recipe, Sampler
from engine.plan import COLUMNS, Plan
from engine.unfit import Unfit

STEPS = 100  # of the table whose noise levels are drawn from
# The part of the model's own course in which the levels lie, 0 where it begins, in pure noise: before it no text is
# told from another, after it hardly any text is needed.
FROM, TO = 0.15, 0.6
GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples are spread evenly, however many are taken
TABLES: tuple[Sampler, ...] = ("ddim", "euler")  # by noise, or by flow matching


@dataclass(frozen=True)
class Draw:
    """One noising of a picture: the network's input `[channels, height, width]`, its timestep, what it should answer,
    and what its squared error is multiplied by to be that of the noise.
    """

    x: torch.Tensor
    t: float
    wanted: torch.Tensor
    weight: float


def draws(family: Family, latents: torch.Tensor, first: int, count: int) -> list[Draw]:
    """Of one fixed sequence those from `first` on; `latents` are a picture's, at the native size. Raises `Unfit`.

    To find the table takes up to a second, once for a model.
    """
    plan = _plan(family)
    return [_draw(plan, latents, number) for number in range(first, first + count)]


def _plan(family: Family) -> Plan:
    """A table that keeps nothing from step to step: any of its rows can be asked by itself."""
    for sampler in TABLES:
        if sampler in family.samplers:
            try:
                return family.plan(sampler, STEPS, 0.0, family.size, family.size)
            except ValueError:  # this one cannot be tabled for this model
                continue
    raise Unfit(f"{family.name} cannot be asked how noisy a picture is, so it cannot describe one.", "model")


def _draw(plan: Plan, latents: torch.Tensor, number: int) -> Draw:
    """x = alpha·z + sigma·noise; the network's answer `out` means x0 = P·x + Q·out, so this one would be exact."""
    share = FROM + (TO - FROM) * ((0.5 + number * GOLDEN) % 1.0)
    at = dict(zip(COLUMNS, plan.table[round(share * plan.steps)].tolist(), strict=True))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(number)).to(latents.device)
    x = at["alpha"] * latents + at["sigma"] * noise
    weight = (at["Q"] * at["alpha"] / at["sigma"]) ** 2
    return Draw(at["c"] * x, at["t"], (latents - at["P"] * x) / at["Q"], weight)


@dataclass(frozen=True)
class Row:
    """One forward's row: which text, which draw."""

    text: int
    draw: int


def chunks(texts: int, draws: int, rows: int) -> Iterator[list[Row]]:
    """All texts with all draws, at most `rows` together; the draws of a text lie beside each other."""
    every = [Row(text, draw) for text, draw in product(range(texts), range(draws))]
    for at in range(0, len(every), rows):
        yield every[at : at + rows]


def told(family: Family, texts: Sequence[str], dtype: Dtype) -> dict[str, Conditions]:
    """What the network reads of each text, at the native size; in one shape, which is that of the longest."""
    read = {text: family.condition(text, _recipe(family, (text,), dtype)) for text in dict.fromkeys(texts)}
    longest = max(read, key=lambda text: read[text][0].numel())
    if len({tuple(part.shape for part in parts) for parts in read.values()}) == 1:
        return read
    return {text: family.condition(text, _recipe(family, (text, longest), dtype)) for text in read}


def _recipe(family: Family, texts: Sequence[str], dtype: Dtype) -> Recipe:
    """One that asks for nothing but these words: families read a text for a recipe, as long as its longest."""
    return Recipe(
        concepts=tuple(map(Concept, texts)), model=family.name, sampler=family.samplers[0], steps=1, seed=0,
        guidance=max(1.0, family.guidance), guides=family.guides, width=family.size, height=family.size, count=1,
        dtype=dtype,
    )  # fmt: skip


@torch.inference_mode()
def errors(
    family: Family, texts: Sequence[str], drawn: Sequence[Draw], asked: Sequence[Row], rows: int, dtype: Dtype
) -> list[float]:
    """The mean squared error of each row's noise, in one forward of `rows` rows: the rest repeats the first, so that
    there is one shape. Waits for the device. Raises `Unfit` for numbers that are not finite.
    """
    padded = [*asked, *[asked[0]] * (rows - len(asked))]
    known = told(family, [texts[row.text] for row in asked], dtype)
    x = torch.stack([drawn[row.draw].x for row in padded])
    t = torch.tensor([drawn[row.draw].t for row in padded], device=x.device)
    conditions = tuple(torch.stack(parts) for parts in zip(*(known[texts[row.text]] for row in padded), strict=True))
    out = family.denoise(x, t, conditions, dtype)[: len(asked)]
    wanted = torch.stack([drawn[row.draw].wanted for row in asked])
    found = (out - wanted).square().flatten(1).mean(dim=1).tolist()
    weighed = [error * drawn[row.draw].weight for error, row in zip(found, asked, strict=True)]
    if not all(map(math.isfinite, weighed)):
        raise Unfit("The model answered with numbers that are not finite.", "model")
    return weighed
