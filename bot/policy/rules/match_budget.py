"""The limit on the work of matching a member's text against word lists and patterns. Pure.

All texts of a request share one limit, so that ten prompts cost no more than one. It counts steps, not time: the same
texts and lists always give the same result.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_MATCH_STEPS = 60_000  # steps; an ordinary prompt takes one or two per character, and a step some microseconds


class BudgetExceeded(Exception):
    """These texts cannot be matched within the limit."""


@dataclass
class MatchBudget:
    """The steps that are left."""

    steps_left: int = MAX_MATCH_STEPS

    def spend(self, steps: int) -> None:
        """Spend `steps`. Raises `BudgetExceeded` if fewer are left."""
        self.steps_left -= steps
        if self.steps_left < 0:
            raise BudgetExceeded
