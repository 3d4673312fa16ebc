"""Measures a model's speed on its device within a budget of seconds; a slow model is timed at small sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.contract import Concept, Dtype, Recipe
from engine.models.family import SMALL_MODEL_SIZE, Conditioning, Family, HasFormats, HasSingleFormat, TimedAtNativeSize

BUDGET_SECONDS = 2.5  # seconds; later parts are estimated, or left to the first job
TIMED_BUCKETS = (1, 2, 4, 8, 16, 32)  # each doubles the one before; real work refines what lies between
BUCKETS_BUDGET_SECONDS = 1.5  # more seconds to build the kernels of a quick model, and as many to time its buckets
TIMING_ROUNDS = 3
BUILD_FORWARDS = 2  # of a shape: the first builds its kernels, the second packs its weights (`onednn_packing`)
MIN_FORWARDS = 6  # of two rows, per number format: fewer would time only kernel building
# the first forward and decode have sides shorter by these factors
FORWARD_SHRINK = 4
DECODE_SHRINK = 8
PROBE_PROMPT = "a small red house beside a lake, flat design"


@dataclass(frozen=True)
class Clock:
    """Seconds: of wall time, and of CPU time of all threads of this process."""

    wall_time: Callable[[], float] = time.perf_counter
    cpu_time: Callable[[], float] = time.process_time

    def time_once(self, work: Callable[[], object], device: torch.device) -> float:
        """Return the milliseconds of one run, the device's work included.

        On a CPU, other programs' time does not count: it returns the CPU time per thread if that is less.
        """
        wall_start = self.wall_time()
        cpu_start = self.cpu_time()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        wall_seconds = self.wall_time() - wall_start
        cpu_seconds = (self.cpu_time() - cpu_start) / torch.get_num_threads()
        return 1000 * (min(wall_seconds, cpu_seconds) if device.type == "cpu" else wall_seconds)


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


def candidate_dtypes(family: Family) -> tuple[Dtype, ...]:
    """Return the number formats that are worth timing."""
    return family.dtypes if isinstance(family, HasFormats) else ("float32", "bfloat16")


def probe_recipe(family: Family) -> Recipe:
    """Return a recipe of the model's native size: some models also condition on size and guidance."""
    return Recipe(
        concepts=(Concept(PROBE_PROMPT),),
        model=family.name,
        sampler=family.samplers[0],
        steps=1,
        seed=0,
        guidance=family.guidance,
        width=family.size,
        height=family.size,
        dtype=candidate_dtypes(family)[0],
        guidance_kind=family.guides,
    )


class _Measurement:
    def __init__(self, family: Family, clock: Clock) -> None:
        self._family = family
        self._clock = clock
        self._recipe = probe_recipe(family)
        self._budget_left = 1000 * BUDGET_SECONDS
        self._conditioning: Conditioning = ()
        self._dtypes = candidate_dtypes(family)

    def run(self) -> Timings:
        encode_ms = self._time_encode()
        row_ms = 0.0 if self._family.size <= SMALL_MODEL_SIZE else self._estimate_row(self._dtypes[0])
        decode_ms = self._time_decode()
        if 2 * row_ms * MIN_FORWARDS * len(self._dtypes) <= max(0.0, self._budget_left):
            dtype_ms = self._time_dtypes()
            bucket_ms = self._time_buckets(min(dtype_ms, key=lambda dtype: dtype_ms[dtype]))
        else:
            dtype_ms = self._estimate_dtypes(2 * row_ms)
            row_ms = min(dtype_ms.values()) / 2
            bucket_ms = {1: row_ms, 2: 2 * row_ms}
        return Timings(encode_ms, 2 * row_ms if decode_ms is None else decode_ms, dtype_ms, bucket_ms)

    def _time_encode(self) -> float:
        """Time the empty text, which most jobs need too; then another text if the first was quick."""

        def encode_text(text: str, *, negative: bool) -> None:
            self._conditioning = self._family.encode_conditioning(text, self._recipe, negative=negative)

        first_ms = self._time_once(lambda: encode_text("", negative=True))
        if 10 * first_ms > self._budget_left:
            return first_ms
        return self._time_once(lambda: encode_text(PROBE_PROMPT, negative=False))

    def _estimate_row(self, dtype: Dtype) -> float:
        """Scale a small forward's time by pixels. Attention grows faster than that; reading weights does not grow."""
        side = self._reduced_side(FORWARD_SHRINK)
        native_side = self._family.size
        measured_ms = self._time_forward(1, dtype, side)
        if self._budget_left > 0:  # the first forward builds the kernels
            measured_ms = min(measured_ms, self._time_forward(1, dtype, side))
        measured_ms *= (native_side / side) ** 2
        return self._time_forward(1, dtype, native_side) if measured_ms <= self._budget_left / 2 else measured_ms

    def _time_decode(self) -> float | None:
        """Return None if the budget is already spent."""
        if self._budget_left <= 0:
            return None
        side = self._reduced_side(DECODE_SHRINK)
        native_side = self._family.size
        measured_ms = self._time_decode_at(side)
        if 2 * measured_ms <= self._budget_left:
            measured_ms = min(measured_ms, self._time_decode_at(side))
        measured_ms *= (native_side / side) ** 2
        if measured_ms > self._budget_left / 4:
            return measured_ms
        return min(self._time_decode_at(native_side) for _ in range(2))

    def _estimate_dtypes(self, first_ms: float) -> dict[Dtype, float]:
        first, *other_dtypes = self._dtypes
        times: dict[Dtype, float] = {first: first_ms}
        for dtype in other_dtypes:
            if self._budget_left > 0:
                times[dtype] = 2 * self._estimate_row(dtype)
        return times

    def _time_dtypes(self) -> dict[Dtype, float]:
        """Time the formats alternately, so that a busy moment affects all of them."""
        best_ms: dict[Dtype, float] = {}
        for dtype in self._dtypes:
            self._time_forward(2, dtype, self._family.size)  # the first forward builds the kernels
        for _ in range(TIMING_ROUNDS):
            for dtype in self._dtypes:
                best_ms[dtype] = min(best_ms.get(dtype, float("inf")), self._time_forward(2, dtype, self._family.size))
        return best_ms

    def _time_buckets(self, dtype: Dtype) -> dict[int, float]:
        """Return the best of a few rounds over all buckets that fit the budget; always time one row and two."""
        best_ms: dict[int, float] = {}
        buckets = self._build_kernels(dtype)
        self._budget_left = 1000 * BUCKETS_BUDGET_SECONDS
        for _ in range(TIMING_ROUNDS):
            for rows in buckets:
                expected = best_ms.get(rows, 2 * best_ms.get(rows // 2, 0.0))
                if expected > self._budget_left and (rows > 2 or rows in best_ms):
                    break
                best_ms[rows] = min(best_ms.get(rows, float("inf")), self._time_forward(rows, dtype, self._family.size))
        for rows in sorted(best_ms, reverse=True)[1:]:  # fewer rows never take longer; if they did, another program ran
            best_ms[rows] = min(best_ms[rows], best_ms[2 * rows])
        return best_ms

    def _build_kernels(self, dtype: Dtype) -> list[int]:
        """Run the first forwards of the buckets, on a budget of their own; return those that were built."""
        buckets = list[int]()
        expected_ms = 0.0
        self._budget_left = 1000 * BUCKETS_BUDGET_SECONDS
        for rows in TIMED_BUCKETS:
            if rows > 2 and expected_ms > self._budget_left:
                break
            forward_ms = [self._time_forward(rows, dtype, self._family.size) for _ in range(BUILD_FORWARDS)]
            buckets.append(rows)
            expected_ms = 2 * min(forward_ms)
        return buckets

    def _reduced_side(self, shrink: int) -> int:
        family = self._family
        if isinstance(family, TimedAtNativeSize):
            return family.size
        return min(family.size, -(-family.size // shrink // family.multiple) * family.multiple)

    def _time_forward(self, rows: int, dtype: Dtype, side: int) -> float:
        family = self._family
        x = torch.zeros((rows, *family.latent_shape(side, side)), device=family.device)
        t = torch.full((rows,), 500.0, device=family.device)
        conditioning = tuple(part.expand(rows, *part.shape) for part in self._conditioning)
        if isinstance(family, HasSingleFormat):
            family.get_network(dtype)  # loading it is not part of the forward
        return self._time_once(lambda: family.denoise(x, t, conditioning, dtype))

    def _time_decode_at(self, side: int) -> float:
        latents = torch.zeros(self._family.latent_shape(side, side), device=self._family.device)
        return self._time_once(lambda: self._family.finish(latents))

    def _time_once(self, work: Callable[[], object]) -> float:
        measured_ms = self._clock.time_once(work, self._family.device)
        self._budget_left -= measured_ms
        return measured_ms
