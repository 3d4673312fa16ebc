"""The rungs of a ladder: the step of each, what it shows, and from which one can branch off.

Knows the wire contract's `Ladder`; knows nothing of jobs, samplers or where ladders are kept. A ladder comes from a
worker: what is no ladder is refused, and latents that are not as long as its shape says count as none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bot.refused import Refused
from engine.job import Ladder, Malformed, decode

UNREADABLE = "The ladder of this picture cannot be read any more."
NOWHERE = "This picture keeps no latents to branch from: it has too few steps, or an earlier version made it."


@dataclass(frozen=True)
class Stage:
    """A rung after `step` steps. `branches`: whether one can go on from there. `thumbnail`: not yet opened."""

    step: int
    branches: bool
    thumbnail: bytes


def stages(ladder: bytes) -> list[Stage]:
    """The rungs in the order of their steps, one for each step. Raises `Refused` (404) for what is no ladder."""
    try:
        read = decode(ladder, Ladder)
    except Malformed as error:
        raise Refused(UNREADABLE, 404) from error
    whole = 4 * math.prod(read.shape)
    found: dict[int, Stage] = {}
    for rung in read.rungs:
        kept = rung.latent is not None and len(rung.latent) == whole
        # After the last step nothing is left to go another way, and before the first nothing has been done.
        stage = Stage(rung.step, kept and 1 <= rung.step < read.of, rung.thumbnail)
        if stage.branches or rung.step not in found:
            found[rung.step] = stage
    return [found[step] for step in sorted(found)]


def branchable(ladder: bytes) -> tuple[int, ...]:
    """The steps that one can branch off at, rising; empty where there are none. Raises `Refused` (404)."""
    return tuple(stage.step for stage in stages(ladder) if stage.branches)


def nearest(ladder: bytes, step: int) -> int:
    """The last step at or below `step` that one can branch off at, else the first above. Raises `Refused` (404)."""
    return closest(branchable(ladder), step)


def closest(places: Sequence[int], step: int) -> int:
    """`nearest` of the steps that are known to be there, rising. Raises `Refused` (404) where there are none."""
    if not places:
        raise Refused(NOWHERE, 404)
    return max((one for one in places if one <= step), default=places[0])
