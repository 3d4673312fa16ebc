"""Calibration: a model's number format, batch limit, default steps and costs, measured once and stored.

It holds for one device, build and model. A recipe freezes what it takes from here, so load never changes pixels. The
batch limit is the knee of the throughput curve: beyond it a larger batch gains under 5 % and only slows each step. Real
work refines the measured times (`refinement`).
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import diffusers
import msgspec
import torch
from msgspec import Meta, Struct
from msgspec.structs import replace

from engine.engine import BUCKETS
from engine.families.family import Accustomed, Family, TakesLoras
from engine.job import Dtype, Sampler, Warm
from engine.measurement import Clock, candidates, measure_times
from engine.whole_file import write_whole

log = logging.getLogger(__name__)

GAIN = 1.05  # twice the rows must gain at least this much throughput to be worth the longer step
SLOW = 500.0  # milliseconds; if a forward of two rows takes longer, a larger one is not worth the wait
PATIENCE = 60.0  # seconds that a grid of four with the default steps may take
GRID_ROWS = 8  # four pictures with guidance
DEFAULTS: tuple[tuple[int, Sampler], ...] = (
    (1000, "ddpm"), (999, "ddpm"), (500, "ddpm"), (250, "ddpm"), (50, "dpmpp_2m"), (30, "dpmpp_2m"), (20, "dpmpp_2m"),
)  # fmt: skip
OTHERWISE = 25  # steps of a model that supports none of these samplers
MOST_KEPT = 256  # calibrations in the file, other models, devices and versions included
STEADY = 1.25  # a row's cost may change by this factor before the default steps change
Milliseconds = Annotated[float, Meta(ge=0, le=1e9)]


class Calibration(Struct, frozen=True, forbid_unknown_fields=True):
    """Milliseconds at the model's native size. `bucket_ms`: of one forward with that many rows."""

    dtype: Dtype
    rows: Annotated[int, Meta(ge=1, le=256)]
    steps: Annotated[int, Meta(ge=1, le=1000)]
    sampler: Sampler
    row_ms: Milliseconds
    encode_ms: Milliseconds
    decode_ms: Milliseconds
    bucket_ms: dict[int, Milliseconds]
    dtype_ms: dict[Dtype, Milliseconds]

    def warm(self, family: Family) -> Warm:
        """Return what a worker announces of this model."""
        return Warm(
            name=family.name, revision=family.revision, dtype=self.dtype, size=family.size, multiple=family.multiple,
            max_pixels=family.max_pixels, tokens=family.tokens, steps=self.steps, sampler=self.sampler,
            guidance=family.guidance, row_ms=self.row_ms, encode_ms=self.encode_ms, decode_ms=self.decode_ms,
            enlargement=family.enlargement, samplers=family.samplers, guides=family.guides,
            guidance_start=family.interval[0], guidance_stop=family.interval[1],
            loras=family.loras() if isinstance(family, TakesLoras) else (),
        )  # fmt: skip

    def repriced(self, warm: Warm) -> Warm:
        """Return the announcement with these costs; it changes nothing that a recipe freezes."""
        return replace(warm, row_ms=self.row_ms, decode_ms=self.decode_ms)


def keep(path: Path, family: Family, found: Calibration) -> None:
    """Store a calibration for the next start."""
    write(path, read(path) | {identity(family): found})


def calibrate(family: Family, path: Path, *, again: bool = False, clock: Clock = Clock()) -> Calibration:
    """Return the stored calibration, or measure (a few seconds) and store it. A damaged file is measured again."""
    key, known = identity(family), read(path)
    found = known.get(key)
    if found is None or again or found.dtype not in candidates(family):
        chosen = measure(family, clock)
    else:
        chosen = with_steady_steps(found, family)
    if chosen != found:
        write(path, known | {key: chosen})
    return chosen


def with_steady_steps(found: Calibration, family: Family) -> Calibration:
    """Return it with other default steps if real work has shown a clearly different speed."""
    least, most = (_in_time(family, found.row_ms * factor)[0][0] for factor in (STEADY, 1 / STEADY))
    if least <= found.steps <= most:
        return found
    steps, sampler = _default_steps(family, found.row_ms)
    return replace(found, steps=steps, sampler=sampler)


def identity(family: Family) -> str:
    """Return the key of a calibration; anything in it changes the timing, or the bits."""
    device = f"{device_name(family.device)}, {torch.get_num_threads()} threads"
    return f"{device} | torch {torch.__version__}, diffusers {diffusers.__version__} | {family.name} {family.revision}"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def measure(family: Family, clock: Clock = Clock()) -> Calibration:
    """Time the model on its device, for two or three seconds."""
    times = measure_times(family, clock)
    dtype = min(times.dtype_ms, key=lambda each: times.dtype_ms[each])
    rows, row_ms = row_cap(times.bucket_ms), row_price(times.bucket_ms)
    steps, sampler = _default_steps(family, row_ms)
    return Calibration(
        dtype, rows, steps, sampler, row_ms, times.encode_ms, times.decode_ms, times.bucket_ms, times.dtype_ms
    )


def row_cap(bucket_ms: Mapping[int, float]) -> int:
    """Return the batch limit: the knee, or the next bucket if only smaller ones were tried and the largest is quick.

    The two rows of a guided image stay in one forward if that is not slower than two forwards.
    """
    found = knee(_worthwhile(bucket_ms))
    most = max(bucket_ms)
    if most in (found, 2) and 1 < most < BUCKETS[-1] and bucket_ms[most] <= SLOW:
        return 2 * most
    return 2 if found == 1 and bucket_ms.get(2, float("inf")) <= 2 * bucket_ms[1] * GAIN else found


def row_price(bucket_ms: Mapping[int, float]) -> float:
    """Return the milliseconds of a row in a forward at the knee."""
    rows = knee(_worthwhile(bucket_ms))
    return bucket_ms[rows] / rows


def knee(bucket_ms: Mapping[int, float]) -> int:
    """Return the smallest bucket whose rows a second no larger one beats by 5 %."""
    throughput = {rows: rows / max(ms, 1e-9) for rows, ms in bucket_ms.items()}
    return min(rows for rows, each in throughput.items() if each * GAIN >= max(throughput.values()))


def _worthwhile(bucket_ms: Mapping[int, float]) -> Mapping[int, float]:
    """Ignore buckets above two rows if two rows already take too long."""
    if bucket_ms.get(2, 0.0) <= SLOW:
        return bucket_ms
    return {rows: ms for rows, ms in bucket_ms.items() if rows <= 2}


def _default_steps(family: Family, row_ms: float) -> tuple[int, Sampler]:
    """Return the model's own default, if any; else the first that is fast enough and fits its schedule."""
    *choices, last = _in_time(family, row_ms)
    return next((each for each in choices if _works(family, each[1], each[0])), last)


def _in_time(family: Family, row_ms: float) -> list[tuple[int, Sampler]]:
    """Return the defaults, most steps first, with which a grid of four takes at most a minute; always the last one."""
    if isinstance(family, Accustomed) and family.usual is not None:
        return [family.usual]
    *choices, last = [each for each in DEFAULTS if each[1] in family.samplers] or [(OTHERWISE, family.samplers[0])]
    return [*(each for each in choices if each[0] * GRID_ROWS * row_ms <= 1000 * PATIENCE), last]


def _works(family: Family, sampler: Sampler, steps: int) -> bool:
    try:
        family.plan(sampler, steps, 0.0, family.size, family.size)
    except ValueError:
        return False
    return True


def read(path: Path) -> dict[str, Calibration]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Calibration])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.warning("the calibration in %s cannot be read, measuring anew: %s", path.name, error)
        return {}


def write(path: Path, known: dict[str, Calibration]) -> None:
    """Store the newest calibrations atomically."""
    kept = dict([*known.items()][-MOST_KEPT:])
    try:
        write_whole(path, msgspec.json.format(msgspec.json.encode(kept)))
    except OSError as error:
        log.warning("the calibration cannot be stored in %s, the next start measures again: %s", path, error)
