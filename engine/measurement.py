"""Measures a model's speed on its device within a budget of seconds; a slow model is timed at small sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.engine import BUCKETS
from engine.families.family import SMALL, Conditions, Family, Formatted, HasNetwork, Rehearsed
from engine.job import Concept, Dtype, Recipe

BUDGET = 2.5  # seconds; later parts are estimated, or left to the first job
BUCKETS_BUDGET = 1.5  # more seconds for the buckets of a quick model
ROUNDS = 3
FORWARDS_NEEDED = 6  # of two rows, per number format: fewer would time only kernel building
FORWARD_SHRINK, DECODE_SHRINK = 4, 8  # the first forward and decode have sides shorter by these factors
PROBE = "a small red house beside a lake, flat design"


@dataclass(frozen=True)
class Clock:
    """Seconds: of wall time, and of CPU time of all threads of this process."""

    wall: Callable[[], float] = time.perf_counter
    ran: Callable[[], float] = time.process_time

    def once(self, work: Callable[[], object], device: torch.device) -> float:
        """Return the milliseconds of one run, the device's work included.

        On a CPU, other programs' time does not count: it returns the CPU time per thread if that is less.
        """
        began, worked = self.wall(), self.ran()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        wall, ran = self.wall() - began, (self.ran() - worked) / torch.get_num_threads()
        return 1000 * (min(wall, ran) if device.type == "cpu" else wall)


@dataclass(frozen=True)
class Timings:
    """Milliseconds at the model's native size. `bucket_ms`: of one forward with that many rows."""

    encode_ms: float
    decode_ms: float
    dtype_ms: dict[Dtype, float]
    bucket_ms: dict[int, float]


def measure_times(family: Family, clock: Clock = Clock()) -> Timings:
    """Time everything once at a small size, and at the native size what the budget allows."""
    return _Measurement(family, clock).run()


def candidates(family: Family) -> tuple[Dtype, ...]:
    """Return the number formats that are worth timing."""
    return family.dtypes if isinstance(family, Formatted) else ("float32", "bfloat16")


def probe(family: Family) -> Recipe:
    """Return a recipe of the model's native size: some models also condition on size and guidance."""
    return Recipe(
        concepts=(Concept(PROBE),), model=family.name, sampler=family.samplers[0], steps=1, seed=0,
        guidance=family.guidance, width=family.size, height=family.size, dtype=candidates(family)[0],
        guides=family.guides,
    )  # fmt: skip


class _Measurement:
    def __init__(self, family: Family, clock: Clock) -> None:
        self._family, self._clock, self._recipe = family, clock, probe(family)
        self._left = 1000 * BUDGET
        self._texts: Conditions = ()
        self._dtypes = candidates(family)

    def run(self) -> Timings:
        encode_ms = self._time_encode()
        row_ms = 0.0 if self._family.size <= SMALL else self._estimate_row(self._dtypes[0])
        decode_ms = self._time_decode()
        if 2 * row_ms * FORWARDS_NEEDED * len(self._dtypes) <= max(0.0, self._left):
            dtype_ms = self._time_dtypes()
            bucket_ms = self._time_buckets(min(dtype_ms, key=lambda each: dtype_ms[each]))
        else:
            dtype_ms = self._estimate_dtypes(2 * row_ms)
            row_ms = min(dtype_ms.values()) / 2
            bucket_ms = {1: row_ms, 2: 2 * row_ms}
        return Timings(encode_ms, 2 * row_ms if decode_ms is None else decode_ms, dtype_ms, bucket_ms)

    def _time_encode(self) -> float:
        """Time the empty text, which most jobs need too; then another text if the first was quick."""

        def read(text: str, *, negative: bool) -> None:
            self._texts = self._family.condition(text, self._recipe, negative=negative)

        first = self._once(lambda: read("", negative=True))
        return self._once(lambda: read(PROBE, negative=False)) if 10 * first <= self._left else first

    def _estimate_row(self, dtype: Dtype) -> float:
        """Scale a small forward's time by pixels. Attention grows faster than that; reading weights does not grow."""
        side, whole = self._side(FORWARD_SHRINK), self._family.size
        found = self._forward(1, dtype, side)
        if self._left > 0:  # the first forward builds the kernels
            found = min(found, self._forward(1, dtype, side))
        found *= (whole / side) ** 2
        return self._forward(1, dtype, whole) if found <= self._left / 2 else found

    def _time_decode(self) -> float | None:
        """Return None if the budget is already spent."""
        if self._left <= 0:
            return None
        side, whole = self._side(DECODE_SHRINK), self._family.size
        found = self._decode(side)
        if 2 * found <= self._left:
            found = min(found, self._decode(side))
        found *= (whole / side) ** 2
        return found if found > self._left / 4 else min(self._decode(whole) for _ in range(2))

    def _estimate_dtypes(self, first_ms: float) -> dict[Dtype, float]:
        first, *others = self._dtypes
        found: dict[Dtype, float] = {first: first_ms}
        for dtype in others:
            if self._left > 0:
                found[dtype] = 2 * self._estimate_row(dtype)
        return found

    def _time_dtypes(self) -> dict[Dtype, float]:
        """Time the formats alternately, so that a busy moment affects all of them."""
        best: dict[Dtype, float] = {}
        for dtype in self._dtypes:
            self._forward(2, dtype, self._family.size)  # the first forward builds the kernels
        for _ in range(ROUNDS):
            for dtype in self._dtypes:
                best[dtype] = min(best.get(dtype, float("inf")), self._forward(2, dtype, self._family.size))
        return best

    def _time_buckets(self, dtype: Dtype) -> dict[int, float]:
        """Return the best of a few rounds over all buckets that fit the budget; always time one row and two."""
        best: dict[int, float] = {}
        self._left = 1000 * BUCKETS_BUDGET
        for _ in range(1 + ROUNDS):  # the first round builds the kernels
            for rows in BUCKETS:
                expected = best.get(rows, 2 * best.get(rows // 2, 0.0))
                if expected > self._left and (rows > 2 or rows in best):
                    break
                best[rows] = min(best.get(rows, float("inf")), self._forward(rows, dtype, self._family.size))
        for rows in sorted(best, reverse=True)[1:]:  # fewer rows never take longer; if they did, another program ran
            best[rows] = min(best[rows], best[2 * rows])
        return best

    def _side(self, shrink: int) -> int:
        family = self._family
        if isinstance(family, Rehearsed):
            return family.size
        return min(family.size, -(-family.size // shrink // family.multiple) * family.multiple)

    def _forward(self, rows: int, dtype: Dtype, side: int) -> float:
        family = self._family
        x = torch.zeros((rows, *family.latent_shape(side, side)), device=family.device)
        t = torch.full((rows,), 500.0, device=family.device)
        texts = tuple(part.expand(rows, *part.shape) for part in self._texts)
        if isinstance(family, HasNetwork):
            family.net(dtype)  # loading it is not part of the forward
        return self._once(lambda: family.denoise(x, t, texts, dtype))

    def _decode(self, side: int) -> float:
        latents = torch.zeros(self._family.latent_shape(side, side), device=self._family.device)
        return self._once(lambda: self._family.finish(latents))

    def _once(self, work: Callable[[], object]) -> float:
        found = self._clock.once(work, self._family.device)
        self._left -= found
        return found
