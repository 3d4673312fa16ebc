"""Refines a calibration with times from real work. Pure: the caller passes the times.

It uses a median of the last few, so that one busy moment does not count. Steps, sampler and number format stay: a
recipe freezes them, and they change only when the worker starts (`calibration`).
"""

from __future__ import annotations

import itertools
import statistics
from collections import deque

from msgspec.structs import replace

from engine.calibration import Calibration, row_cap, row_price

REMEMBERED = 9  # last times that are kept
ENOUGH = 3  # times that are needed before they count
CHANGE = 1.1  # smaller changes are not announced


class Refinement:
    """The refinement of one model. One thread notes forwards, another decodes, a third reads."""

    def __init__(self, found: Calibration) -> None:
        self.found = found
        self._buckets: dict[int, deque[float]] = {}
        self._decodes: deque[float] = deque(maxlen=REMEMBERED)

    def note_forward(self, rows: int, ms: float) -> None:
        """Note the time of a forward with this many rows at the native size."""
        self._buckets.setdefault(rows, deque(maxlen=REMEMBERED)).append(ms)

    def note_decode(self, ms: float) -> None:
        """Note the time of one finished picture at the native size."""
        self._decodes.append(ms)

    def renew(self) -> Calibration | None:
        """Return the refined calibration if it changed enough to announce; it then replaces `found`."""
        buckets = self._bucket_ms()
        decode_ms = _median(self._decodes) or self.found.decode_ms
        made = replace(
            self.found, rows=row_cap(buckets), row_ms=row_price(buckets), decode_ms=decode_ms, bucket_ms=buckets
        )
        if not _differs(made, self.found):
            return None
        self.found = made
        return made

    def _bucket_ms(self) -> dict[int, float]:
        """Scale unused buckets by the nearest used one; fewer rows never take longer."""
        known = self.found.bucket_ms
        medians = {rows: _median(times) for rows, times in list(self._buckets.items())}
        real = {rows: ms for rows, ms in medians.items() if ms}
        if not real:
            return known
        best = {rows: ms * _factor(rows, real, known) for rows, ms in known.items()} | real
        order = sorted(best)
        for rows, larger in reversed([*itertools.pairwise(order)]):
            best[rows] = min(best[rows], best[larger])
        return {rows: best[rows] for rows in order}


def _factor(rows: int, real: dict[int, float], known: dict[int, float]) -> float:
    both = [each for each in real if known.get(each)]
    if not both:
        return 1.0
    nearest = min(both, key=lambda each: max(each / rows, rows / each))
    return real[nearest] / known[nearest]


def _median(times: deque[float]) -> float:
    """Return the median; 0 if there are too few times."""
    some = tuple(times)
    return statistics.median(some) if len(some) >= ENOUGH else 0.0


def _differs(one: Calibration, other: Calibration) -> bool:
    pairs = ((one.row_ms, other.row_ms), (one.decode_ms, other.decode_ms))
    return one.rows != other.rows or any(max(pair) > CHANGE * min(pair) for pair in pairs)
