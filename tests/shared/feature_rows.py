"""The rows that features add to the tests' tables: text files beside their tests, which go with the feature."""

from __future__ import annotations

from pathlib import Path

BOT_TESTS = Path(__file__).parents[1] / "bot"


def read_feature_rows(name: str) -> list[str]:
    """Reads the lines of every feature's file of this name, feature by feature."""
    files = [file for folder in ("features", "apis") for file in sorted(BOT_TESTS.glob(f"{folder}/*/{name}.txt"))]
    return [line for file in files for line in file.read_text().splitlines()]
