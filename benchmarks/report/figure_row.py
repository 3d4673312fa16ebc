"""The frame of every benchmark: figures beside their goals, as a table for people or as JSON, and a command line.

A figure of no samples never passes: a row says how many samples were taken, and how many were planned. Errors are
described for a report that people publish.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> FigureRow:
        """Return the row that `to_dict` described; the remark becomes its note."""
        counts = row.get("samples", 1), row.get("of", 1)
        return cls(row["name"], row["figure"], row["goal"], row["unit"], row.get("note", ""), *counts)

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


def print_rows(rows: Sequence[FigureRow], *, as_json: bool) -> None:
    """Print the rows of a command on standard output."""
    print(format_json(rows) if as_json else format_table(rows))  # noqa: T201 - the command line's answer


def print_progress(sentence: str) -> None:
    """Print what is measured next on standard error."""
    print(sentence, file=sys.stderr, flush=True)  # noqa: T201


def missing_rows(names: Sequence[str], reason: str) -> list[FigureRow]:
    """Return the rows of figures that could not be measured: they never pass."""
    return [FigureRow(name, None, None, "", reason, 0) for name in names]


def make_parser(name: str, about: str | None, quick: str) -> argparse.ArgumentParser:
    """Return the command line of `darkroom bench NAME`: --quick, which means `quick`, and --json."""
    parser = argparse.ArgumentParser(prog=f"darkroom bench {name}", description=about)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    return parser


MAX_LENGTH = 300  # characters
FAILED = "failed"  # how the note of a row begins that an error left without a figure
# Only a quoted path may contain spaces. `//` begins no path: addresses stay. A compiler's flag may precede one: -I/usr.
_QUOTED_PATH = re.compile(r"""(['"])(?:(?:file://)?/(?!/)|[A-Za-z]:[/\\]).*?\1""")
_PATH = re.compile(
    r"""(?:(?<![\w./])|(?<=[\s'"]-[A-Za-z]))(?:(?:file://|~)?/(?!/)|[A-Za-z]:[/\\])[^\s'"<>|]+(?<![,;:.)\]])"""
)


def describe_error(error: Exception) -> str:
    """Return the error's type and text on one line, with `<path>` in place of each absolute path."""
    text = _PATH.sub("<path>", _QUOTED_PATH.sub(r"\1<path>\1", " ".join(str(error).split())))
    return f"{type(error).__name__}: {text}"[:MAX_LENGTH] if text else type(error).__name__
