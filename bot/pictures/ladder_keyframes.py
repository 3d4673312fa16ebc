"""Keyframes of a ladder: the step and thumbnail of each, and whether a job can branch there.

A ladder comes from a worker: this module refuses an invalid one, and ignores latents that do not match its shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bot.domain.errors import UserError
from engine.contract import Ladder, MalformedMessage, decode

UNREADABLE = "The keyframes of this picture cannot be read any more."
NO_KEYFRAMES = "This picture has no keyframes to branch from: it has too few steps, or what drew it keeps none."


@dataclass(frozen=True)
class KeyframeThumbnail:
    """A keyframe after `step` steps. `can_branch`: whether a job can branch here. `thumbnail`: still encoded."""

    step: int
    can_branch: bool
    thumbnail: bytes


def read_keyframes(ladder: bytes) -> list[KeyframeThumbnail]:
    """Return the keyframes by their steps, one per step. Raises `UserError` (404) for bytes that are no ladder."""
    try:
        decoded = decode(ladder, Ladder)
    except MalformedMessage as error:
        raise UserError(UNREADABLE, 404) from error
    full_bytes = 4 * math.prod(decoded.shape)
    keyframes: dict[int, KeyframeThumbnail] = {}
    for entry in decoded.keyframes:
        has_latents = entry.latent is not None and len(entry.latent) == full_bytes
        # After the last step nothing is left to change, and before the first nothing has been done.
        keyframe = KeyframeThumbnail(entry.step, has_latents and 1 <= entry.step < decoded.total_steps, entry.thumbnail)
        if keyframe.can_branch or entry.step not in keyframes:
            keyframes[entry.step] = keyframe
    return [keyframes[step] for step in sorted(keyframes)]


def branch_steps(ladder: bytes) -> tuple[int, ...]:
    """Return the steps that can be branched, ascending; empty if there are none. Raises `UserError` (404)."""
    return tuple(keyframe.step for keyframe in read_keyframes(ladder) if keyframe.can_branch)


def nearest_branch_step(ladder: bytes, step: int) -> int:
    """Return the last step at or below `step` that can be branched, else the first above. Raises `UserError` (404)."""
    return closest_step(branch_steps(ladder), step)


def closest_step(steps: Sequence[int], step: int) -> int:
    """Do the same as `nearest_branch_step`, on known steps in ascending order. Raises `UserError` (404) for none."""
    if not steps:
        raise UserError(NO_KEYFRAMES, 404)
    return max((candidate for candidate in steps if candidate <= step), default=steps[0])
