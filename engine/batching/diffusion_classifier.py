"""A diffusion classifier: scores how well texts fit an image (Li et al. 2023, arXiv 2303.16203).

It noises the image's latents a few times, with different noise and levels. The network then predicts that noise under
each text; the text with the least error fits best. All texts get the same noises, so errors differ only by the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import cast

import torch

from engine.contract import Concept, Dtype, JobRejected, Recipe, Sampler
from engine.models.family import Conditioning, Family
from engine.sampling import COLUMNS, Plan

TABLE_STEPS = 100  # of the table that the noise levels come from
# The levels lie in this part of the steps, with 0 at pure noise. Before it the texts all score alike; after it the
# network hardly needs a text.
FIRST_SHARE = 0.15
LAST_SHARE = 0.6
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2  # any number of its multiples, modulo 1, spread evenly
CLASSIFIER_SAMPLERS: tuple[Sampler, ...] = ("ddim", "euler")  # for noise prediction, for flow matching


@dataclass(frozen=True)
class Noising:
    """One noising of an image: the network's input, its timestep, and the output that would be exact.

    `x` is `[channels, height, width]`. `weight` turns the squared error of the output into that of the noise.
    """

    x: torch.Tensor
    t: float
    target: torch.Tensor
    weight: float


def noise_image(family: Family, latents: torch.Tensor, first: int, count: int) -> list[Noising]:
    """Return `count` draws from number `first` on of one fixed sequence. `latents`: an image's, at the native size.

    Finding the table takes up to a second, once per model. Raises `JobRejected`.
    """
    plan = _find_plan(family)
    return [_noise_image(plan, latents, number) for number in range(first, first + count)]


def _find_plan(family: Family) -> Plan:
    """Return the plan of a sampler without history, so that each row can be used by itself."""
    for sampler in CLASSIFIER_SAMPLERS:
        if sampler in family.samplers:
            try:
                return family.plan(sampler, TABLE_STEPS, 0.0, family.size, family.size)
            except ValueError:  # it has no table for this model
                continue
    raise JobRejected(
        f"{family.name} cannot score how well a prompt fits an image, so it cannot describe one.", "model"
    )


def _noise_image(plan: Plan, latents: torch.Tensor, number: int) -> Noising:
    """Return x = alpha·z + sigma·noise. The output `out` means x0 = P·x + Q·out, which gives the exact output."""
    position = FIRST_SHARE + (LAST_SHARE - FIRST_SHARE) * ((0.5 + number * GOLDEN_RATIO) % 1.0)
    coefficients = dict(zip(COLUMNS, plan.table[round(position * plan.steps)].tolist(), strict=True))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(number)).to(latents.device)
    x = coefficients["alpha"] * latents + coefficients["sigma"] * noise
    weight = (coefficients["Q"] * coefficients["alpha"] / coefficients["sigma"]) ** 2
    return Noising(
        coefficients["c"] * x, coefficients["t"], (latents - coefficients["P"] * x) / coefficients["Q"], weight
    )


@dataclass(frozen=True)
class ClassifierRow:
    """One row of a forward: the index of its text and of its draw."""

    text_index: int
    noising_index: int


def split_rows(text_count: int, noising_count: int, chunk_size: int) -> Iterator[list[ClassifierRow]]:
    """Yield all pairs of text and draw, at most `chunk_size` together; the draws of a text are neighbours."""
    rows_in_order = [
        ClassifierRow(text_index, noising_index)
        for text_index, noising_index in product(range(text_count), range(noising_count))
    ]
    for start in range(0, len(rows_in_order), chunk_size):
        yield rows_in_order[start : start + chunk_size]


def encode_texts(family: Family, texts: Sequence[str], dtype: Dtype) -> dict[str, Conditioning]:
    """Return the conditioning of each text at the native size, all in the shape of the longest."""
    conditioning_by_text = {
        text: family.encode_conditioning(text, _recipe(family, (text,), dtype)) for text in dict.fromkeys(texts)
    }
    longest = max(conditioning_by_text, key=lambda text: conditioning_by_text[text][0].numel())
    if len({tuple(part.shape for part in parts) for parts in conditioning_by_text.values()}) == 1:
        return conditioning_by_text
    return {
        text: family.encode_conditioning(text, _recipe(family, (text, longest), dtype)) for text in conditioning_by_text
    }


def _recipe(family: Family, texts: Sequence[str], dtype: Dtype) -> Recipe:
    return Recipe(
        concepts=tuple(map(Concept, texts)),
        model=family.name,
        sampler=family.samplers[0],
        steps=1,
        seed=0,
        guidance=max(1.0, family.guidance),
        guidance_kind=family.guides,
        width=family.size,
        height=family.size,
        count=1,
        dtype=dtype,
    )


@torch.inference_mode()
def prediction_errors(
    family: Family,
    texts: Sequence[str],
    noisings: Sequence[Noising],
    rows_to_score: Sequence[ClassifierRow],
    batch_rows: int,
    dtype: Dtype,
) -> list[float]:
    """Return the mean squared error of the noise for each of `rows_to_score`, from one forward of `batch_rows` rows.

    Copies of the first row pad the forward, so that there is one shape. Waits for the device. Raises `JobRejected` for
    numbers that are not finite.
    """
    padded = [*rows_to_score, *[rows_to_score[0]] * (batch_rows - len(rows_to_score))]
    conditioning_by_text = encode_texts(family, [texts[row.text_index] for row in rows_to_score], dtype)
    x = torch.stack([noisings[row.noising_index].x for row in padded])
    t = torch.tensor([noisings[row.noising_index].t for row in padded], device=x.device)
    conditioning = tuple(
        torch.stack(parts)
        for parts in zip(*(conditioning_by_text[texts[row.text_index]] for row in padded), strict=True)
    )
    out = family.denoise(x, t, conditioning, dtype)[: len(rows_to_score)]
    target = torch.stack([noisings[row.noising_index].target for row in rows_to_score])
    squared_errors = cast(list[float], (out - target).square().flatten(1).mean(dim=1).tolist())
    errors = [
        error * noisings[row.noising_index].weight for error, row in zip(squared_errors, rows_to_score, strict=True)
    ]
    if not all(map(math.isfinite, errors)):
        raise JobRejected("The model answered with numbers that are not finite.", "model")
    return errors
