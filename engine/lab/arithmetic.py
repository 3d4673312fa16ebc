"""Sums of words as pictures: mixed in embedding space, and as separate rows whose outputs are summed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.lab.mixing import balanced, mixed, positive
from engine.lab.room import Room, Shown
from engine.lab.sheet import Tile, sheet
from engine.lab.sums import Term, written
from engine.sampling import Drawing
from engine.unfit import Unfit

WAYS = ("mixed in embedding space", "composable rows")
STAIRS = 5
SENTENCE = (
    "Each row starts from the same noise: first each term alone, then one conditioning, the sum of token states, "
    "then a network row for each term, their outputs summed with weights whose positive part is scaled to 1."
)


def mix(room: Room, terms: Sequence[Term], count: int = 3) -> Shown:
    """Draw each term alone, the embedding mix and the composable rows, from `count` seeds. Raises `Unfit`."""
    if not any(term.weight > 0 for term in terms):
        raise Unfit("At least one term must have a plus sign.", "member")
    starts = [room.noise(number) for number in range(count)]
    drawings = [drawing for start in starts for drawing in _row(room, terms, start)]
    pictures = room.develop(drawings)
    captions = [*(term.text for term in terms), *WAYS]
    across = len(captions)
    rows = [
        [Tile(picture, caption) for picture, caption in zip(pictures[at : at + across], captions, strict=True)]
        for at in range(0, len(pictures), across)
    ]
    figures = {"terms": {term.text: term.weight for term in terms}, "seeds": [room.seed + n for n in range(count)]}
    return Shown("mix", sheet(written(terms), rows), SENTENCE, figures)


def stairs(room: Room, terms: Sequence[Term]) -> Shown:
    """Draw the sum while the last term's weight grows from 0 to its value in equal steps, from one seed."""
    *others, last = terms
    weights = [last.weight * number / (STAIRS - 1) for number in range(STAIRS)]
    sums = [[*others, Term(last.text, weight)] for weight in weights]
    if not all(any(term.weight > 0 for term in each) for each in sums):
        raise Unfit("A term before the last must have a plus sign, since the last one begins at 0.", "member")
    whole = positive(term.weight for term in others)  # for all stairs, so that the others keep their guidance
    pairs = [_row(room, each, room.noise(), whole)[-2:] for each in sums]
    pictures = room.develop([drawing for way in zip(*pairs, strict=True) for drawing in way])
    captions = [f"{weight:+.3g} {last.text}, {way}" for way in WAYS for weight in weights]
    tiles = [Tile(picture, caption) for picture, caption in zip(pictures, captions, strict=True)]
    figures = {"terms": {term.text: term.weight for term in terms}, "weights": weights, "seeds": [room.seed]}
    sentence = (
        f"The weight of “{last.text}” grows from 0 to {last.weight:g} and the other terms stay, in both ways of mixing."
    )
    return Shown("stairs", sheet(written(terms), [tiles[:STAIRS], tiles[STAIRS:]]), sentence, figures)


def _row(room: Room, terms: Sequence[Term], start: torch.Tensor, whole: float | None = None) -> list[Drawing]:
    states = [room.family.encode(term.text) for term in terms]
    empty = room.family.encode("")
    weights = [term.weight for term in terms]
    alone = [room.told(state, start) for state in states]
    mix = room.told(mixed(empty, states, weights), start)
    return [*alone, mix, composed(room, states, weights, start, whole)]


def composed(
    room: Room, states: Sequence[torch.Tensor], weights: Sequence[float], start: torch.Tensor,
    whole: float | None = None,
) -> Drawing:  # fmt: skip
    """Return the drawing u + guidance·Σ wᵢ(cᵢ - u) (Liu et al.

    2022), as the bot's `::` does, weights balanced likewise.

    `whole` is the sum of weights that counts as 1; by default the sum of the positive weights.
    """
    steer = tuple(room.guidance * weight for weight in balanced(weights, whole))
    return Drawing(start, torch.stack([room.family.encode(""), *states]), steer)
