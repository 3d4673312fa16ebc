"""Keyframes of a ladder: the step and thumbnail of each, and whether a job can branch there.

A ladder comes from a worker: an invalid one is refused, and latents that do not match its shape count as none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bot.refused import Refused
from engine.job import Ladder, Malformed, decode

UNREADABLE = "The keyframes of this picture cannot be read any more."
NOWHERE = "This picture has no keyframes to branch from: it has too few steps, or an earlier version made it."


@dataclass(frozen=True)
class Stage:
    """A keyframe after `step` steps. `branches`: whether a job can branch here. `thumbnail`: still encoded."""

    step: int
    branches: bool
    thumbnail: bytes


def stages(ladder: bytes) -> list[Stage]:
    """Return the keyframes in the order of their steps, one per step. Raises `Refused` (404) for what is no ladder."""
    try:
        read = decode(ladder, Ladder)
    except Malformed as error:
        raise Refused(UNREADABLE, 404) from error
    whole = 4 * math.prod(read.shape)
    found: dict[int, Stage] = {}
    for rung in read.rungs:
        kept = rung.latent is not None and len(rung.latent) == whole
        # After the last step nothing is left to change, and before the first nothing has been done.
        stage = Stage(rung.step, kept and 1 <= rung.step < read.of, rung.thumbnail)
        if stage.branches or rung.step not in found:
            found[rung.step] = stage
    return [found[step] for step in sorted(found)]


def branchable(ladder: bytes) -> tuple[int, ...]:
    """Return the steps that can be branched, ascending; empty if there are none. Raises `Refused` (404)."""
    return tuple(stage.step for stage in stages(ladder) if stage.branches)


def nearest(ladder: bytes, step: int) -> int:
    """Return the last step at or below `step` that can be branched, else the first above. Raises `Refused` (404)."""
    return closest(branchable(ladder), step)


def closest(places: Sequence[int], step: int) -> int:
    """Do `nearest` on known steps, in ascending order. Raises `Refused` (404) if there are none."""
    if not places:
        raise Refused(NOWHERE, 404)
    return max((one for one in places if one <= step), default=places[0])
