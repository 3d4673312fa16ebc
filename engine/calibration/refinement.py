"""Refines a calibration with times from real work. Pure: the caller passes the times.

It uses a median of the last few, so that one busy moment does not count. Steps, sampler and number format stay: a
recipe freezes them, and they change only when the worker starts (`calibration`).
"""

from __future__ import annotations

import itertools
import statistics
from collections import deque

from msgspec.structs import replace

from engine.calibration.calibration import Calibration, find_batch_limit, find_row_ms

MAX_SAMPLES = 9  # last times that are kept
MIN_SAMPLES = 3  # times that are needed before they count
MIN_CHANGE = 1.1  # smaller changes are not announced


class Refinement:
    """The refinement of one model. One thread notes forwards, another decodes, a third reads."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self._forward_samples: dict[int, deque[float]] = {}
        self._decode_samples: deque[float] = deque(maxlen=MAX_SAMPLES)

    def note_forward(self, rows: int, ms: float) -> None:
        """Note the time of a forward with this many rows at the native size."""
        self._forward_samples.setdefault(rows, deque(maxlen=MAX_SAMPLES)).append(ms)

    def note_decode(self, ms: float) -> None:
        """Note the time of one finished picture at the native size."""
        self._decode_samples.append(ms)

    def refine(self) -> Calibration | None:
        """Return the refined calibration if it changed enough to announce; it then becomes the current one."""
        bucket_ms = self._refined_bucket_ms()
        decode_ms = _median(self._decode_samples) or self.calibration.decode_ms
        refined = replace(
            self.calibration,
            rows=find_batch_limit(bucket_ms),
            row_ms=find_row_ms(bucket_ms),
            decode_ms=decode_ms,
            bucket_ms=bucket_ms,
        )
        if not _is_announceable(refined, self.calibration):
            return None
        self.calibration = refined
        return refined

    def _refined_bucket_ms(self) -> dict[int, float]:
        """Scale unused buckets by the nearest used one; fewer rows never take longer."""
        calibrated = self.calibration.bucket_ms
        medians_by_rows = {rows: _median(times) for rows, times in list(self._forward_samples.items())}
        measured = {rows: ms for rows, ms in medians_by_rows.items() if ms}
        if not measured:
            return calibrated
        scaled = {rows: ms * _speed_factor(rows, measured, calibrated) for rows, ms in calibrated.items()} | measured
        row_counts = sorted(scaled)
        for rows, larger in reversed([*itertools.pairwise(row_counts)]):
            scaled[rows] = min(scaled[rows], scaled[larger])
        return {rows: scaled[rows] for rows in row_counts}


def _speed_factor(rows: int, measured: dict[int, float], calibrated: dict[int, float]) -> float:
    common = [bucket for bucket in measured if calibrated.get(bucket)]
    if not common:
        return 1.0
    nearest = min(common, key=lambda each: max(each / rows, rows / each))
    return measured[nearest] / calibrated[nearest]


def _median(times: deque[float]) -> float:
    """Return the median; 0 if there are too few times."""
    samples = tuple(times)
    return statistics.median(samples) if len(samples) >= MIN_SAMPLES else 0.0


def _is_announceable(current: Calibration, previous: Calibration) -> bool:
    pairs = ((current.row_ms, previous.row_ms), (current.decode_ms, previous.decode_ms))
    return current.rows != previous.rows or any(max(pair) > MIN_CHANGE * min(pair) for pair in pairs)
