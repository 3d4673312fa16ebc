"""How soon a message in Discord shows what its author said, over the tests' loopback Discord."""

from __future__ import annotations

from benchmarks.report.figure_row import FigureRow
from benchmarks.steering.loopback_rows import measure_in_loopback

EDIT_NAME = "press in Discord → the first edit whose picture shows it, p99"
ROW_NAMES = (EDIT_NAME,)


def measure_discord_edits(*, quick: bool) -> list[FigureRow]:
    return measure_in_loopback("bench_steer", ROW_NAMES, quick=quick)
