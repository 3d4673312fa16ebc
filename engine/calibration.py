"""What timing decides, measured once for a device, build and model, and stored: dtype, row cap, default steps, costs.

A recipe freezes what it took from here, so load never changes pixels. The row cap is the knee, beyond which a larger
batch gains under 5 % and only makes each step slower. What a short measurement estimates, real work corrects
(`refinement`).
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

GAIN = 1.05  # a doubling of the rows that gains less throughput than this is not worth its longer step
SLOW = 500.0  # milliseconds of a forward of two rows after which a larger one is not worth the wait
PATIENCE = 60.0  # seconds that a grid of four with the default steps may take
GRID_ROWS = 8  # four pictures with guidance
DEFAULTS: tuple[tuple[int, Sampler], ...] = (
    (1000, "ddpm"), (999, "ddpm"), (500, "ddpm"), (250, "ddpm"), (50, "dpmpp_2m"), (30, "dpmpp_2m"), (20, "dpmpp_2m"),
)  # fmt: skip
OTHERWISE = 25  # steps of a model that takes none of these samplers
MOST_KEPT = 256  # calibrations in the file: of other models, devices or versions
STEADY = 1.25  # by how much a row's price may change before other default steps are chosen
Milliseconds = Annotated[float, Meta(ge=0, le=1e9)]


class Calibration(Struct, frozen=True, forbid_unknown_fields=True):
    """Milliseconds at the model's native size. `bucket_ms` is of one forward with so many rows."""

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
        """What a worker announces of this model."""
        return Warm(
            name=family.name, revision=family.revision, dtype=self.dtype, size=family.size, multiple=family.multiple,
            max_pixels=family.max_pixels, tokens=family.tokens, steps=self.steps, sampler=self.sampler,
            guidance=family.guidance, row_ms=self.row_ms, encode_ms=self.encode_ms, decode_ms=self.decode_ms,
            enlargement=family.enlargement, samplers=family.samplers, guides=family.guides,
            guidance_start=family.interval[0], guidance_stop=family.interval[1],
            loras=family.loras() if isinstance(family, TakesLoras) else (),
        )  # fmt: skip

    def repriced(self, warm: Warm) -> Warm:
        """The same announcement with these prices: nothing that a recipe freezes."""
        return replace(warm, row_ms=self.row_ms, decode_ms=self.decode_ms)


def keep(path: Path, family: Family, found: Calibration) -> None:
    """For the next start."""
    write(path, read(path) | {identity(family): found})


def calibrate(family: Family, path: Path, *, again: bool = False, clock: Clock = Clock()) -> Calibration:
    """The stored calibration, or a fresh one (a few seconds), which is then stored. A spoilt file is measured anew."""
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
    """With other default steps where real work has shown that the model is much faster, or slower, than it seemed."""
    least, most = (_in_time(family, found.row_ms * factor)[0][0] for factor in (STEADY, 1 / STEADY))
    if least <= found.steps <= most:
        return found
    steps, sampler = _default_steps(family, found.row_ms)
    return replace(found, steps=steps, sampler=sampler)


def identity(family: Family) -> str:
    """What a calibration is bound to: any of these changes the timing, or the bits."""
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
    """Time it on its device, for two or three seconds."""
    times = measure_times(family, clock)
    dtype = min(times.dtype_ms, key=lambda each: times.dtype_ms[each])
    rows, row_ms = row_cap(times.bucket_ms), row_price(times.bucket_ms)
    steps, sampler = _default_steps(family, row_ms)
    return Calibration(
        dtype, rows, steps, sampler, row_ms, times.encode_ms, times.decode_ms, times.bucket_ms, times.dtype_ms
    )


def row_cap(bucket_ms: Mapping[int, float]) -> int:
    """The knee, or the next bucket where that was never tried and the largest known one is quick.

    The two rows of a guided picture stay one forward where that is not slower than two.
    """
    found = knee(_worthwhile(bucket_ms))
    most = max(bucket_ms)
    if most in (found, 2) and 1 < most < BUCKETS[-1] and bucket_ms[most] <= SLOW:
        return 2 * most
    return 2 if found == 1 and bucket_ms.get(2, float("inf")) <= 2 * bucket_ms[1] * GAIN else found


def row_price(bucket_ms: Mapping[int, float]) -> float:
    """Milliseconds of a row in a forward at the knee."""
    rows = knee(_worthwhile(bucket_ms))
    return bucket_ms[rows] / rows


def knee(bucket_ms: Mapping[int, float]) -> int:
    """The smallest bucket that no larger one beats by 5 % in rows a second."""
    throughput = {rows: rows / max(ms, 1e-9) for rows, ms in bucket_ms.items()}
    return min(rows for rows, each in throughput.items() if each * GAIN >= max(throughput.values()))


def _worthwhile(bucket_ms: Mapping[int, float]) -> Mapping[int, float]:
    """Where two rows take long, nobody waits for more."""
    if bucket_ms.get(2, 0.0) <= SLOW:
        return bucket_ms
    return {rows: ms for rows, ms in bucket_ms.items() if rows <= 2}


def _default_steps(family: Family, row_ms: float) -> tuple[int, Sampler]:
    """The model's own, if it has any; else the first that is done in time, and that its schedule allows."""
    *choices, last = _in_time(family, row_ms)
    return next((each for each in choices if _works(family, each[1], each[0])), last)


def _in_time(family: Family, row_ms: float) -> list[tuple[int, Sampler]]:
    """1000 of DDPM where a grid of four is done in a minute, then fewer that are; twenty in any case."""
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
    """The newest, whole or not at all."""
    kept = dict([*known.items()][-MOST_KEPT:])
    try:
        write_whole(path, msgspec.json.format(msgspec.json.encode(kept)))
    except OSError as error:
        log.warning("the calibration cannot be stored in %s, the next start measures again: %s", path, error)
