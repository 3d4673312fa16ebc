"""Measures that several benchmarks use: closeness of pictures, fairness, percentiles, growth and rates. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

EQUAL_PSNR = 120.0  # dB for equal pictures


def psnr(picture: Image.Image | NDArray[Any], other_picture: Image.Image | NDArray[Any]) -> float:
    """Return the PSNR of two pictures of one shape (values 0 to 255) in dB, at most `EQUAL_PSNR`."""
    difference = np.asarray(picture, dtype=np.float64) - np.asarray(other_picture, dtype=np.float64)
    squared_error = float((difference**2).mean())
    return min(EQUAL_PSNR, 10 * math.log10(255**2 / squared_error)) if squared_error else EQUAL_PSNR


def jain_index(shares: Iterable[float]) -> float:
    """Return Jain's fairness index (Σ x)² / (n Σ x²) (Jain, Chiu and Hawe 1984).

    It is 1 where all have the same, 1/n where one has everything, and NaN if all are 0.
    """
    numbers = [*shares]
    return sum(numbers) ** 2 / (len(numbers) * sum(value * value for value in numbers)) if any(numbers) else math.nan


def percentile(values: Sequence[float], quantile: float) -> float:
    """Return the smallest value that at least a share `quantile` of them does not exceed. NaN if there are none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(quantile * len(values)) - 1)]


def growth_exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return the exponent e of time ~ size^e, by least squares over the logarithms."""
    return statistics.linear_regression([math.log(each) for each in sizes], [math.log(each) for each in times]).slope


def rate_per_second(times: Sequence[float]) -> float:
    """Return how many a second, by least squares through these times: a batch that ends at once counts once."""
    if len(times) < 2:
        return 0.0
    return 1.0 / statistics.linear_regression(range(len(times)), sorted(times)).slope
