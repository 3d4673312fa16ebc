"""How much work may go into holding what somebody typed against lists of words and patterns.

One effort is for all texts of a request, so that ten prompts at once cost no more than one. Counted, not timed: the
same texts against the same lists always end alike. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

EFFORT = 60_000  # steps; an ordinary prompt takes one or two a character, and one step some microseconds


class Tangled(Exception):
    """These texts cannot be read in bounded time."""


@dataclass
class Effort:
    """What is left of it."""

    left: int = EFFORT

    def spend(self, steps: int) -> None:
        """Raises `Tangled` where that is more than is left."""
        self.left -= steps
        if self.left < 0:
            raise Tangled
