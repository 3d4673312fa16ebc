"""Sums of words as pictures: mixed in embedding space, and beside it as rows that the network answers one by one."""

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
    "Each row starts from the same noise: first every term alone, then one text whose token states are the sum, "
    "then all texts asked one by one and their answers summed, with weights whose positive part is brought to 1."
)


def mix(room: Room, terms: Sequence[Term], count: int = 3) -> Shown:
    """Each term alone, the embedding mix and the composable rows, from `count` starts. Raises `Unfit`."""
    if not any(term.weight > 0 for term in terms):
        raise Unfit("Something in the sum must have a plus sign: from nothing, nothing can be taken away.", "member")
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
    """How much of the last term: its weight grows from 0 to what is written, in equal steps, from one start."""
    *others, last = terms
    weights = [last.weight * number / (STAIRS - 1) for number in range(STAIRS)]
    sums = [[*others, Term(last.text, weight)] for weight in weights]
    if not all(any(term.weight > 0 for term in each) for each in sums):
        raise Unfit("A term before the last must have a plus sign: the last one begins at nothing.", "member")
    whole = positive(term.weight for term in others)  # of all stairs: what stays must not be steered by less
    pairs = [_row(room, each, room.noise(), whole)[-2:] for each in sums]
    pictures = room.develop([drawing for way in zip(*pairs, strict=True) for drawing in way])
    captions = [f"{weight:+.3g} {last.text}, {way}" for way in WAYS for weight in weights]
    tiles = [Tile(picture, caption) for picture, caption in zip(pictures, captions, strict=True)]
    figures = {"terms": {term.text: term.weight for term in terms}, "weights": weights, "seeds": [room.seed]}
    sentence = (
        f"The weight of “{last.text}” grows from 0 to {last.weight:g} and all else stays, in both ways of mixing."
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
    """out = u + guidance·Σ wᵢ(cᵢ - u) (Liu et al. 2022): what the bot's `::` does, with weights balanced as there.

    `whole` is the sum of weights that counts as 1; that of the positive ones unless it is given.
    """
    steer = tuple(room.guidance * weight for weight in balanced(weights, whole))
    return Drawing(start, torch.stack([room.family.encode(""), *states]), steer)
