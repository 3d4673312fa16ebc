"""Tests of the allowed batch shapes."""

from __future__ import annotations

import pytest

from engine.batching.batch import BUCKETS


@pytest.mark.parametrize("rows", range(1, BUCKETS[-1] + 1))
def test_padding_is_less_than_a_third_of_a_forward(rows: int) -> None:
    bucket = next(size for size in BUCKETS if size >= rows)
    assert (bucket - rows) / bucket < 1 / 3
