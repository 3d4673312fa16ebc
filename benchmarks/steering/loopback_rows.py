"""Runs a measurement of the tests' loopback Discord in a process of its own. Needs a checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.discord.command import ROOT, find_obstacle, make_environment
from benchmarks.report.figure_row import FigureRow


def measure_in_loopback(module: str, names: Sequence[str], *, quick: bool) -> list[FigureRow]:
    """Return the rows that `loopback.MODULE` prints; without figures where the tests or their packages are missing."""
    if obstacle := find_obstacle():
        return _missing_rows(names, obstacle)
    command = [sys.executable, "-m", f"loopback.{module}", *["--quick"] * quick]
    done = subprocess.run(command, env=make_environment(), stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if done.returncode:
        return _missing_rows(names, f"The measurement's process ended with code {done.returncode}.")
    return [
        FigureRow(
            row["name"], row["figure"], row["goal"], row["unit"], row.get("note", ""), row.get("samples", 1),
            row.get("of", 1),
        )
        for row in json.loads(done.stdout)
    ]  # fmt: skip


def _missing_rows(names: Sequence[str], reason: str) -> list[FigureRow]:
    return [FigureRow(name, None, None, "", reason, 0) for name in names]
