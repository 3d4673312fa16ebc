"""What timing decides, measured once for a device, build and model, and stored: dtype, row cap, default steps, costs.

A recipe freezes what it took from here, so load never changes pixels. Dtypes are timed in turn, so that a busy moment
hits both; the row cap is the knee, beyond which a larger batch gains under 5 % and only makes each step slower.
"""

from __future__ import annotations

import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import diffusers
import msgspec
import torch
from msgspec import Meta, Struct

from engine.engine import BUCKETS
from engine.families.family import Accustomed, Family, Formatted, TakesLoras
from engine.job import Concept, Dtype, Recipe, Sampler, Warm

log = logging.getLogger(__name__)

GAIN = 1.05  # a doubling of the rows that gains less throughput than this is not worth its longer step
ROUNDS = 3
BUDGET = 1.5  # seconds for the row buckets; the larger ones are left out when it is spent
SLOW = 500.0  # milliseconds of a forward after which a larger one is not worth the wait
PATIENCE = 60.0  # seconds that a grid of four with the default steps may take
GRID_ROWS = 8  # four pictures with guidance
DEFAULTS: tuple[tuple[int, Sampler], ...] = (
    (1000, "ddpm"), (999, "ddpm"), (500, "ddpm"), (250, "ddpm"), (50, "dpmpp_2m"), (30, "dpmpp_2m"), (20, "dpmpp_2m"),
)  # fmt: skip
OTHERWISE = 25  # steps of a model that takes none of these samplers
PROBE = "a small red house beside a lake, flat design"

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


def calibrate(family: Family, path: Path, *, again: bool = False) -> Calibration:
    """The stored calibration, or a fresh one (a few seconds), which is then stored. A spoilt file is measured anew."""
    key, known = identity(family), _read(path)
    if key not in known or again or known[key].dtype not in candidates(family):
        known[key] = measure(family)
        _write(path, known)
    _works(family, known[key].sampler, known[key].steps)  # its plan is probed now, not when the first job waits for it
    return known[key]


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


def measure(family: Family) -> Calibration:
    """Time everything on the family's device."""
    dtype_ms = _time_dtypes(family)
    dtype = min(dtype_ms, key=lambda each: dtype_ms[each])
    bucket_ms = _time_buckets(family, dtype)
    rows = knee(bucket_ms)
    row_ms = bucket_ms[rows] / rows
    steps, sampler = _default_steps(family, row_ms)
    latents = torch.zeros(family.latent_shape(family.size, family.size), device=family.device)
    decode_ms = min(_once(family, lambda: family.finish(latents)) for _ in range(2))
    encode_ms = _once(family, lambda: family.condition(PROBE, probe(family)))
    return Calibration(dtype, rows, steps, sampler, row_ms, encode_ms, decode_ms, bucket_ms, dtype_ms)


def knee(bucket_ms: dict[int, float]) -> int:
    """The smallest bucket that no larger one beats by 5 % in rows a second."""
    throughput = {rows: rows / max(ms, 1e-9) for rows, ms in bucket_ms.items()}
    return min(rows for rows, each in throughput.items() if each * GAIN >= max(throughput.values()))


def candidates(family: Family) -> tuple[Dtype, ...]:
    """The number formats that are worth timing."""
    return family.dtypes if isinstance(family, Formatted) else ("float32", "bfloat16")


def _time_dtypes(family: Family) -> dict[Dtype, float]:
    best: dict[Dtype, float] = {}
    for dtype in candidates(family):
        _forward(family, 2, dtype)  # the first pass builds the kernels
    for _ in range(ROUNDS):
        for dtype in candidates(family):
            best[dtype] = min(best.get(dtype, float("inf")), _forward(family, 2, dtype))
    return best


def _time_buckets(family: Family, dtype: Dtype) -> dict[int, float]:
    """The best of a few rounds over all sizes while the budget lasts; two rounds get to a grid's rows if they can."""
    best: dict[int, float] = {}
    deadline = time.monotonic() + BUDGET
    for number in range(1 + ROUNDS):  # in the first round the kernels are built
        for rows in BUCKETS:
            needed = number < 2 and rows <= GRID_ROWS and best.get(rows // 2, 0.0) <= SLOW
            if time.monotonic() > deadline and not needed:
                break
            best[rows] = min(best.get(rows, float("inf")), _forward(family, rows, dtype))
    for rows in sorted(best, reverse=True)[1:]:  # fewer rows never take longer: if they did, something else was running
        best[rows] = min(best[rows], best[2 * rows])
    return best


def _forward(family: Family, rows: int, dtype: Dtype) -> float:
    x = torch.zeros((rows, *family.latent_shape(family.size, family.size)), device=family.device)
    t = torch.full((rows,), 500.0, device=family.device)
    texts = tuple(part.expand(rows, *part.shape) for part in family.condition("", probe(family)))
    return _once(family, lambda: family.denoise(x, t, texts, dtype))


def probe(family: Family) -> Recipe:
    """A recipe of the model's native size: some models also read sizes and guidance."""
    return Recipe(
        concepts=(Concept(PROBE),), model=family.name, sampler=family.samplers[0], steps=1, seed=0,
        guidance=family.guidance, width=family.size, height=family.size, dtype=candidates(family)[0],
        guides=family.guides,
    )  # fmt: skip


def _once(family: Family, work: Callable[[], object]) -> float:
    """Milliseconds of one run, the device's work included.

    On a CPU, what other programs take is not ours: the time that our threads ran, shared among them, if that is less.
    """
    began, worked = time.perf_counter(), time.process_time()
    work()
    if family.device.type == "cuda":
        torch.cuda.synchronize(family.device)
    wall, ran = time.perf_counter() - began, (time.process_time() - worked) / torch.get_num_threads()
    return 1000 * (min(wall, ran) if family.device.type == "cpu" else wall)


def _default_steps(family: Family, row_ms: float) -> tuple[int, Sampler]:
    """The model's own, if it has any; else 1000 of DDPM where a grid of four is done in a minute, or the most that is.

    Twenty in any case.
    """
    if isinstance(family, Accustomed) and family.usual is not None:
        return family.usual
    choices: list[tuple[int, Sampler]] = [each for each in DEFAULTS if each[1] in family.samplers]
    for steps, sampler in choices[:-1]:
        if steps * GRID_ROWS * row_ms <= 1000 * PATIENCE and _works(family, sampler, steps):
            return steps, sampler
    return choices[-1] if choices else (OTHERWISE, family.samplers[0])


def _works(family: Family, sampler: Sampler, steps: int) -> bool:
    try:
        family.plan(sampler, steps, 0.0, family.size, family.size)
    except ValueError:
        return False
    return True


def _read(path: Path) -> dict[str, Calibration]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Calibration])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.warning("the calibration in %s cannot be read, measuring anew: %s", path.name, error)
        return {}


def _write(path: Path, known: dict[str, Calibration]) -> None:
    """Whole or not at all: a reader never sees half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            file.write(msgspec.json.format(msgspec.json.encode(known)))
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    except OSError as error:
        log.warning("the calibration cannot be stored in %s, the next start measures again: %s", path, error)
