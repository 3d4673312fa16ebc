"""One measured figure beside its goal, as a table for people and as JSON for programs, for any benchmark.

A figure of no samples never passes: a row says how many samples were taken, and how many were planned.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

AT_MOST_SIGN = "≤"
RANGE_WORD = " to "


@dataclass(frozen=True)
class FigureRow:
    """One figure. `goal` reads "≥ 3.5", "≤ 200", "= 1" or "0.9 to 1.1"; None means that the figure has no goal.

    A figure of None could not be measured, and `note` says why. `samples` of the `planned` samples were taken: fewer
    miss every goal, and with none the figure becomes None. A figure that is not finite becomes None, too.
    """

    name: str
    figure: float | None
    goal: str | None
    unit: str
    note: str = ""
    samples: int = 1
    planned: int = 1

    def __post_init__(self) -> None:
        """Drop a figure that has no samples or is not finite."""
        if self.figure is not None and (self.samples < 1 or not math.isfinite(self.figure)):
            object.__setattr__(self, "figure", None)

    @property
    def figure_text(self) -> str:
        """Return the figure with its unit, for people."""
        return "not measured" if self.figure is None else f"{self.figure:.4g} {self.unit}".strip()

    @property
    def remark(self) -> str:
        """Return the note, after a sentence about missing samples."""
        if self.samples < 1:
            missing_text = f"nothing was measured: 0 of {self.planned:,}"
        elif self.samples < self.planned:
            missing_text = f"only {self.samples:,} of {self.planned:,} were measured"
        else:
            missing_text = "no figure could be computed" if self.figure is None and not self.note else ""
        return "; ".join(filter(None, (missing_text, self.note)))

    @property
    def meets_goal(self) -> bool:
        if self.figure is None or self.samples < self.planned:
            return False
        if self.goal is None:
            return True
        if RANGE_WORD in self.goal:
            low, high = map(float, self.goal.split(RANGE_WORD))
            return low <= self.figure <= high
        sign, bound = self.goal.split()
        if sign == "=":
            return self.figure == float(bound)
        return self.figure <= float(bound) if sign == AT_MOST_SIGN else self.figure >= float(bound)

    def to_dict(self) -> dict[str, object]:
        row: dict[str, object] = {
            "name": self.name,
            "figure": self.figure,
            "goal": self.goal,
            "unit": self.unit,
            "pass": self.meets_goal,
        }
        sample_counts = {"samples": self.samples, "of": self.planned} if self.planned > 1 or self.samples != 1 else {}
        return row | ({"note": self.remark} if self.remark else {}) | sample_counts


def format_json(rows: Sequence[FigureRow]) -> str:
    return json.dumps([row.to_dict() for row in rows], indent=1, ensure_ascii=False)


def format_table(rows: Sequence[FigureRow]) -> str:
    """Return one line a row, with the goal beside the figure and a mark if it was missed."""
    lines: list[str] = []
    for row in rows:
        goal = f" (goal {row.goal})" if row.goal else ""
        mark = "—   " if row.figure is None else "ok  " if row.meets_goal else "MISS"
        lines.append(f"{mark} {row.name}: {row.figure_text}{goal}")
        if row.remark:
            lines.append(f"       {row.remark}")
    return "\n".join(lines)
