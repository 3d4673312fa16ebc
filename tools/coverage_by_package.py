"""Prints coverage by package, of lines and of branches: `python tools/coverage_by_package.py out/coverage.json`."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

COUNTS = ("num_statements", "covered_lines", "num_branches", "covered_branches")


def get_package(path: str) -> str:
    """The package of a file: its first two folders, or one where it lies directly in the top folder."""
    return "/".join(Path(path).parts[:-1][:2])


def format_share(covered: int, total: int) -> str:
    return f"{100 * covered / total:.1f} %" if total else "–"


def main(report: Path) -> None:
    files = json.loads(report.read_text())["files"]
    packages: dict[str, list[int]] = defaultdict(lambda: [0] * len(COUNTS))
    for path, file in files.items():
        for package in {get_package(path), "all"}:
            summary = file["summary"]
            packages[package] = [total + summary[count] for total, count in zip(packages[package], COUNTS, strict=True)]
    print(f"{'package':<28}{'lines':>8}{'covered':>10}{'branches':>10}{'covered':>10}")
    for package, (lines, covered_lines, branches, covered_branches) in sorted(packages.items()):
        print(
            f"{package:<28}{lines:>8}{format_share(covered_lines, lines):>10}"
            f"{branches:>10}{format_share(covered_branches, branches):>10}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
