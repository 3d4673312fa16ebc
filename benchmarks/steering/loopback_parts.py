"""The parts that are measured over the loopback Discord, each in a process of its own. They need a checkout."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.discord.command import ROOT, find_obstacle, make_environment
from benchmarks.report.figure_row import FigureRow
from bot.domain.errors import UserError

EDIT_NAME = "press in Discord → the first edit whose picture shows it, p99"
FAIR_NAME = "one party, 10 asked a second: Jain's index by members heard"
LIMITED_NAME = "one party: 429 caused by us"
LATE_NAME = "one party: late finals"
ROW_NAMES = {"discord": (EDIT_NAME,), "party": (FAIR_NAME, LIMITED_NAME, LATE_NAME)}
MODULES = {"discord": "tools.loopback.bench_steer", "party": "tools.loopback.bench_party"}


def measure_in_loopback(part: str, *, quick: bool) -> list[FigureRow]:
    """Return the rows that the part's module prints. Raises `UserError` where the tests or their packages are missing,
    or if its process fails.
    """
    if obstacle := find_obstacle():
        raise UserError(obstacle)
    command = [sys.executable, "-m", MODULES[part], *["--quick"] * quick]
    done = subprocess.run(command, env=make_environment(), stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise UserError(f"The measurement's process ended with code {done.returncode}.")
    return [
        FigureRow(
            row["name"],
            row["figure"],
            row["goal"],
            row["unit"],
            row.get("note", ""),
            row.get("samples", 1),
            row.get("of", 1),
        )
        for row in json.loads(done.stdout)
    ]
