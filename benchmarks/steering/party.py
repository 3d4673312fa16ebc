"""Fifty members in one party, over the tests' loopback Discord in a process of its own. Needs a checkout."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.discord.command import ROOT, find_obstacle, make_environment
from benchmarks.report.figure_row import FigureRow

FAIR_NAME = "one party, 10 asked a second: Jain's index by members heard"
LIMITED_NAME = "one party: 429 caused by us"
LATE_NAME = "one party: late finals"
ROW_NAMES = (FAIR_NAME, LIMITED_NAME, LATE_NAME)


def measure_party(*, quick: bool) -> list[FigureRow]:
    """Run the party and return its rows; without figures where the tests or their packages are missing."""
    if obstacle := find_obstacle():
        return _missing_rows(obstacle)
    command = [sys.executable, "-m", "loopback.bench_party", *["--quick"] * quick]
    done = subprocess.run(command, env=make_environment(), stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if done.returncode:
        return _missing_rows(f"The party's process ended with code {done.returncode}.")
    return [
        FigureRow(
            row["name"], row["figure"], row["goal"], row["unit"], row.get("note", ""), row.get("samples", 1),
            row.get("of", 1),
        )
        for row in json.loads(done.stdout)
    ]  # fmt: skip


def _missing_rows(reason: str) -> list[FigureRow]:
    return [FigureRow(name, None, None, "", reason, 0) for name in ROW_NAMES]
