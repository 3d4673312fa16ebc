"""A diffusion classifier: scores how well texts fit an image (Li et al. 2023, arXiv 2303.16203).

It noises the image's latents a few times, with different noise and levels. The network then predicts that noise under
each text; the text with the least error fits best. All texts get the same noises, so only the text makes errors differ.
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

STEPS = 100  # of the table that the noise levels come from
# The levels lie in this part of the steps, with 0 at pure noise. Before it the texts all score alike; after it the
# network hardly needs a text.
FROM, TO = 0.15, 0.6
GOLDEN = (math.sqrt(5) - 1) / 2  # any number of its multiples, modulo 1, spread evenly
TABLES: tuple[Sampler, ...] = ("ddim", "euler")  # for noise prediction, for flow matching


@dataclass(frozen=True)
class Draw:
    """One noising of an image: the network's input, its timestep, and the output that would be exact.

    `x` is `[channels, height, width]`. `weight` turns the squared error of the output into that of the noise.
    """

    x: torch.Tensor
    t: float
    wanted: torch.Tensor
    weight: float


def draws(family: Family, latents: torch.Tensor, first: int, count: int) -> list[Draw]:
    """Return `count` draws from number `first` on of one fixed sequence. `latents`: an image's, at the native size.

    Finding the table takes up to a second, once per model. Raises `Unfit`.
    """
    plan = _plan(family)
    return [_draw(plan, latents, number) for number in range(first, first + count)]


def _plan(family: Family) -> Plan:
    """Return the plan of a sampler without history, so that each row can be used by itself."""
    for sampler in TABLES:
        if sampler in family.samplers:
            try:
                return family.plan(sampler, STEPS, 0.0, family.size, family.size)
            except ValueError:  # it has no table for this model
                continue
    raise Unfit(f"{family.name} cannot score how well a prompt fits an image, so it cannot describe one.", "model")


def _draw(plan: Plan, latents: torch.Tensor, number: int) -> Draw:
    """Return x = alpha·z + sigma·noise. The output `out` means x0 = P·x + Q·out, which gives the exact output."""
    share = FROM + (TO - FROM) * ((0.5 + number * GOLDEN) % 1.0)
    at = dict(zip(COLUMNS, plan.table[round(share * plan.steps)].tolist(), strict=True))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(number)).to(latents.device)
    x = at["alpha"] * latents + at["sigma"] * noise
    weight = (at["Q"] * at["alpha"] / at["sigma"]) ** 2
    return Draw(at["c"] * x, at["t"], (latents - at["P"] * x) / at["Q"], weight)


@dataclass(frozen=True)
class Row:
    """One row of a forward: the index of its text and of its draw."""

    text: int
    draw: int


def chunks(texts: int, draws: int, rows: int) -> Iterator[list[Row]]:
    """Yield all pairs of text and draw, at most `rows` together; the draws of a text are neighbours."""
    every = [Row(text, draw) for text, draw in product(range(texts), range(draws))]
    for at in range(0, len(every), rows):
        yield every[at : at + rows]


def told(family: Family, texts: Sequence[str], dtype: Dtype) -> dict[str, Conditions]:
    """Return the conditioning of each text at the native size, all in the shape of the longest."""
    read = {text: family.condition(text, _recipe(family, (text,), dtype)) for text in dict.fromkeys(texts)}
    longest = max(read, key=lambda text: read[text][0].numel())
    if len({tuple(part.shape for part in parts) for parts in read.values()}) == 1:
        return read
    return {text: family.condition(text, _recipe(family, (text, longest), dtype)) for text in read}


def _recipe(family: Family, texts: Sequence[str], dtype: Dtype) -> Recipe:
    """Return a minimal recipe: families encode a text for a recipe, padded to its longest text."""
    return Recipe(
        concepts=tuple(map(Concept, texts)), model=family.name, sampler=family.samplers[0], steps=1, seed=0,
        guidance=max(1.0, family.guidance), guides=family.guides, width=family.size, height=family.size, count=1,
        dtype=dtype,
    )  # fmt: skip


@torch.inference_mode()
def errors(
    family: Family, texts: Sequence[str], drawn: Sequence[Draw], asked: Sequence[Row], rows: int, dtype: Dtype
) -> list[float]:
    """Return the mean squared error of the noise for each row, in one forward of `rows` rows.

    Copies of the first row pad the forward, so that there is one shape. Waits for the device. Raises `Unfit` for
    numbers that are not finite.
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
