"""The parts of the documentation that repeat the code are as the code has them."""

from __future__ import annotations

from tools.write_docs import find_outdated


def test_generated_pages_are_up_to_date() -> None:
    assert find_outdated() == [], "write them anew: make write-docs"
