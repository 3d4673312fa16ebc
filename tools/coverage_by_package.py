"""Prints coverage by package, of lines and of branches: `python tools/coverage_by_package.py out/coverage.json`."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

COUNTS = ("num_statements", "covered_lines", "num_branches", "covered_branches")


def get_room(path: str) -> str:
    """The room of a file: its first two folders, or one where it lies directly in the top folder."""
    return "/".join(Path(path).parts[:-1][:2])


def format_share(covered: int, total: int) -> str:
    return f"{100 * covered / total:.1f} %" if total else "–"


def main(report: Path) -> None:
    files = json.loads(report.read_text())["files"]
    rooms: dict[str, list[int]] = defaultdict(lambda: [0] * len(COUNTS))
    for path, file in files.items():
        for room in {get_room(path), "all"}:
            rooms[room] = [total + file["summary"][count] for total, count in zip(rooms[room], COUNTS, strict=True)]
    print(f"{'room':<28}{'lines':>8}{'covered':>10}{'branches':>10}{'covered':>10}")
    for room, (lines, covered_lines, branches, covered_branches) in sorted(rooms.items()):
        print(
            f"{room:<28}{lines:>8}{format_share(covered_lines, lines):>10}"
            f"{branches:>10}{format_share(covered_branches, branches):>10}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
