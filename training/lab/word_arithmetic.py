"""Sums of words as pictures: mixed in embedding space, and as separate rows whose outputs are summed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.contract.rejection import JobRejected
from training.diffusion.latent_sampling import SamplingInput
from training.lab.contact_sheet import Tile, draw_sheet
from training.lab.context import ExperimentResult, LabContext
from training.lab.tensor_math import balance_weights, mix_states, positive_sum
from training.lab.word_sums import Term, format_sum

METHODS = ("mixed in embedding space", "composable rows")
WEIGHT_STEPS = 5
MIX_SUMMARY = (
    "Each row starts from the same noise: first each term alone, then one conditioning, the sum of token states, "
    "then a network row for each term, their outputs summed with weights whose positive part is scaled to 1."
)


def draw_mix(context: LabContext, terms: Sequence[Term], count: int = 3) -> ExperimentResult:
    """Draw each term alone, the embedding mix and the composable rows, from `count` seeds. Raises `JobRejected`."""
    if not any(term.weight > 0 for term in terms):
        raise JobRejected("At least one term must have a plus sign.", "member")
    noises = [context.initial_noise(number) for number in range(count)]
    drawings = [drawing for noise in noises for drawing in _row_drawings(context, terms, noise)]
    pictures = context.render_pictures(drawings)
    captions = [*(term.text for term in terms), *METHODS]
    columns = len(captions)
    rows = [
        [Tile(picture, caption) for picture, caption in zip(pictures[offset : offset + columns], captions, strict=True)]
        for offset in range(0, len(pictures), columns)
    ]
    figures = {"terms": {term.text: term.weight for term in terms}, "seeds": [context.seed + n for n in range(count)]}
    return ExperimentResult("mix", draw_sheet(format_sum(terms), rows), MIX_SUMMARY, figures)


def draw_weight_steps(context: LabContext, terms: Sequence[Term]) -> ExperimentResult:
    """Draw the sum while the last term's weight grows from 0 to its value in equal steps, from one seed."""
    *other_terms, last_term = terms
    weights = [last_term.weight * number / (WEIGHT_STEPS - 1) for number in range(WEIGHT_STEPS)]
    sums = [[*other_terms, Term(last_term.text, weight)] for weight in weights]
    if not all(any(term.weight > 0 for term in sum_terms) for sum_terms in sums):
        raise JobRejected("A term before the last must have a plus sign, since the last one begins at 0.", "member")
    total_weight = positive_sum(
        term.weight for term in other_terms
    )  # for all steps, so that the others keep their guidance
    pairs = [_row_drawings(context, sum_terms, context.initial_noise(), total_weight)[-2:] for sum_terms in sums]
    pictures = context.render_pictures([drawing for method in zip(*pairs, strict=True) for drawing in method])
    captions = [f"{weight:+.3g} {last_term.text}, {method}" for method in METHODS for weight in weights]
    tiles = [Tile(picture, caption) for picture, caption in zip(pictures, captions, strict=True)]
    figures = {"terms": {term.text: term.weight for term in terms}, "weights": weights, "seeds": [context.seed]}
    summary = (
        f"The weight of “{last_term.text}” grows from 0 to {last_term.weight:g} and the other terms stay, in both "
        "ways of mixing."
    )
    return ExperimentResult(
        "stairs", draw_sheet(format_sum(terms), [tiles[:WEIGHT_STEPS], tiles[WEIGHT_STEPS:]]), summary, figures
    )


def _row_drawings(
    context: LabContext, terms: Sequence[Term], noise: torch.Tensor, total_weight: float | None = None
) -> list[SamplingInput]:
    states = [context.family.encode_text(term.text) for term in terms]
    empty = context.family.encode_text("")
    weights = [term.weight for term in terms]
    single_drawings = [context.make_drawing(state, noise) for state in states]
    mix_drawing = context.make_drawing(mix_states(empty, states, weights), noise)
    return [*single_drawings, mix_drawing, compose_drawing(context, states, weights, noise, total_weight)]


def compose_drawing(
    context: LabContext,
    states: Sequence[torch.Tensor],
    weights: Sequence[float],
    noise: torch.Tensor,
    total_weight: float | None = None,
) -> SamplingInput:
    """Return the drawing u + guidance·Σ wᵢ(cᵢ - u) (Liu et al. 2022), with balanced weights, as the bot's `::` does.

    `total_weight` is the sum of weights that counts as 1; by default the sum of the positive weights.
    """
    coefficients = tuple(context.guidance * weight for weight in balance_weights(weights, total_weight))
    return SamplingInput(noise, torch.stack([context.family.encode_text(""), *states]), coefficients)
