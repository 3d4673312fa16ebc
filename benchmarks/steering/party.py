"""Fifty members in one party, over the tests' loopback Discord."""

from __future__ import annotations

from benchmarks.report.figure_row import FigureRow
from benchmarks.steering.loopback_rows import measure_in_loopback

FAIR_NAME = "one party, 10 asked a second: Jain's index by members heard"
LIMITED_NAME = "one party: 429 caused by us"
LATE_NAME = "one party: late finals"
ROW_NAMES = (FAIR_NAME, LIMITED_NAME, LATE_NAME)


def measure_party(*, quick: bool) -> list[FigureRow]:
    return measure_in_loopback("bench_party", ROW_NAMES, quick=quick)
