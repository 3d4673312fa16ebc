"""One measured figure beside its goal, as a table for people and as JSON for programs. Knows no benchmark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

_AT_MOST = "≤"


@dataclass(frozen=True)
class Row:
    """`goal` reads "≥ 3.5", "≤ 200" or "= 1", or is None for a figure that is only told.

    A figure of None could not be measured here, and `note` says why.
    """

    name: str
    figure: float | None
    goal: str | None
    unit: str
    note: str = ""

    @property
    def passed(self) -> bool:
        if self.figure is None:
            return False
        if self.goal is None:
            return True
        sign, bound = self.goal.split()
        if sign == "=":
            return self.figure == float(bound)
        return self.figure <= float(bound) if sign == _AT_MOST else self.figure >= float(bound)

    def plain(self) -> dict[str, object]:
        row: dict[str, object] = {
            "name": self.name,
            "figure": self.figure,
            "goal": self.goal,
            "unit": self.unit,
            "pass": self.passed,
        }
        return row | ({"note": self.note} if self.note else {})


def as_json(rows: Sequence[Row]) -> str:
    return json.dumps([row.plain() for row in rows], indent=1, ensure_ascii=False)


def as_table(rows: Sequence[Row]) -> str:
    """One line a row, goal beside figure, a mark where it was missed."""
    lines: list[str] = []
    for row in rows:
        figure = "not measured" if row.figure is None else f"{row.figure:.4g} {row.unit}".strip()
        goal = f" (goal {row.goal})" if row.goal else ""
        mark = "—   " if row.figure is None else "ok  " if row.passed else "MISS"
        lines.append(f"{mark} {row.name}: {figure}{goal}")
        if row.note:
            lines.append(f"       {row.note}")
    return "\n".join(lines)
