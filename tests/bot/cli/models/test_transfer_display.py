"""The line of a download: bytes, speed, time left."""

from __future__ import annotations

import io

from rich.console import Console

from bot.cli.models.upkeep import TransferDisplay


def test_without_a_terminal_a_line_comes_every_ten_seconds() -> None:
    output = io.StringIO()
    now = [100.0]
    console = Console(file=output)
    with TransferDisplay(console, "flux", 34_000_000_000, 4_000_000_000, now=lambda: now[0]) as display:
        for _ in range(40):
            now[0] += 1.0
            display("download", 100_000_000)
            display("check", 5)
    lines = output.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0] == "flux: 5.0 of 34.0 GB, 100 MB a second, 5 min left"
    assert lines[-1] == "flux: 8.0 of 34.0 GB, 100 MB a second, 4 min left"


def test_a_quiet_one_prints_nothing() -> None:
    output = io.StringIO()
    now = [0.0]
    with TransferDisplay(Console(file=output), "flux", 100, quiet=True, now=lambda: now[0]) as display:
        now[0] = 60.0
        display("download", 50)
    assert output.getvalue() == ""
    assert display.format_line() == "flux: 0 of 1 kB, 1 kB a second, 60 s left"
