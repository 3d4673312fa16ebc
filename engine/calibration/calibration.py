"""Calibration: a model's number format, batch limit, default steps and costs, measured once and stored.

It holds for one device, build and model. A recipe freezes what it takes from here, so load never changes pixels. The
batch limit is the knee of the throughput curve: beyond it a larger batch gains under 5 % and only slows each step. Real
work refines the measured times (`refinement`).
"""

from __future__ import annotations

import itertools
import logging
import platform
import statistics
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import diffusers
import msgspec
import torch
from msgspec import Meta, Struct
from msgspec.structs import replace

from engine.calibration.measurement import TIMED_BUCKETS, Clock, candidate_dtypes, measure_times
from engine.contract import PIPELINE_SAMPLERS, Dtype, ModelProfile, Sampler
from engine.models.families.picture_editing import EditsPictures
from engine.models.family import (
    CanBeOffloaded,
    Family,
    HasDefaultSampling,
    SkipsTextLayers,
    TakesAutoencoders,
    TakesEmbeddings,
    TakesLoras,
    TakesPictures,
    find_judge,
)
from engine.models.picture_conditions import PictureSupport
from engine.models.quantization import find_quantization
from engine.process.system import write_atomically
from engine.sampling import NotTabled

log = logging.getLogger(__name__)

MIN_THROUGHPUT_GAIN = 1.05  # twice the rows must gain at least this much throughput to be worth the longer step
SLOW_FORWARD_MS = 500.0  # milliseconds; if a forward of two rows takes longer, a larger one is not worth the wait
MAX_GRID_SECONDS = 60.0  # seconds that a grid of four with the default steps may take
GRID_ROWS = 8  # four pictures with guidance
DEFAULT_STEPS: tuple[tuple[int, Sampler], ...] = (
    (1000, "ddpm"),
    (999, "ddpm"),
    (500, "ddpm"),
    (250, "ddpm"),
    (50, "dpmpp_2m"),
    (30, "dpmpp_2m"),
    (20, "dpmpp_2m"),
)
TABLE_STEPS = 4  # of a table that only shows whether there are tables
FALLBACK_STEPS = 25  # steps of a model that supports none of these samplers
MAX_STORED = 256  # calibrations in the file, other models, devices and versions included
STEADY_FACTOR = 1.25  # a row's cost may change by this factor before the default steps change
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

    def to_model_profile(self, family: Family) -> ModelProfile:
        """Return what a worker announces of this model."""
        profile = ModelProfile(
            name=family.name,
            revision=family.revision,
            dtype=self.dtype,
            size=family.size,
            multiple=family.multiple,
            max_pixels=family.max_pixels,
            tokens=family.tokens,
            steps=self.steps,
            sampler=self.sampler,
            guidance=family.guidance,
            row_ms=self.row_ms,
            encode_ms=self.encode_ms,
            decode_ms=self.decode_ms,
            upscale_factor=family.upscale_factor,
            samplers=family.samplers,
            guidance_kind=family.guides,
            guidance_start=family.interval[0],
            guidance_stop=family.interval[1],
            loras=family.list_loras() if isinstance(family, TakesLoras) else (),
            has_judge=find_judge(family) is not None,
            quantization=find_quantization(family),
            embeddings=family.list_embeddings() if isinstance(family, TakesEmbeddings) else (),
            autoencoders=family.list_autoencoders() if isinstance(family, TakesAutoencoders) else (),
            required=_find_required(family),
            max_clip_skip=family.max_clip_skip if isinstance(family, SkipsTextLayers) else 0,
            edits=isinstance(family, EditsPictures),
            max_edit_pictures=family.max_edit_pictures if isinstance(family, EditsPictures) else 1,
            lacks=() if _has_tables(family) else ("evaluations",),
        )
        if not isinstance(family, TakesPictures):
            return profile
        return replace(
            profile,
            controls=family.list_controls(),
            preprocessors=family.list_preprocessors(),
            references=family.list_references(),
        )

    def with_current_costs(self, model_profile: ModelProfile) -> ModelProfile:
        """Return the announcement with these costs; it changes nothing that a recipe freezes."""
        return replace(model_profile, row_ms=self.row_ms, decode_ms=self.decode_ms)


def _find_required(family: Family) -> Literal["", "mask", "picture"]:
    return family.required if isinstance(family, PictureSupport) else ""


def store_calibration(path: Path, family: Family, calibration: Calibration) -> None:
    """Store a calibration for the next start."""
    write_calibrations(path, read_calibrations(path) | {calibration_key(family): calibration})


def calibrate(family: Family, path: Path, *, force: bool = False, clock: Clock = Clock()) -> Calibration:
    """Return the stored calibration, or measure (a few seconds) and store it. A damaged file is measured again."""
    key = calibration_key(family)
    stored = read_calibrations(path)
    previous = stored.get(key)
    if previous is None or force or previous.dtype not in candidate_dtypes(family):
        current = measure_calibration(family, clock)
    else:
        current = update_default_steps(previous, family)
    if current != previous:
        write_calibrations(path, stored | {key: current})
    return current


def update_default_steps(calibration: Calibration, family: Family) -> Calibration:
    """Return it with other default steps if real work has shown a clearly different speed."""
    min_steps, max_steps = (
        _fast_enough_defaults(family, calibration.row_ms * factor)[0][0]
        for factor in (STEADY_FACTOR, 1 / STEADY_FACTOR)
    )
    if min_steps <= calibration.steps <= max_steps:
        return calibration
    steps, sampler = _choose_default_steps(family, calibration.row_ms)
    return replace(calibration, steps=steps, sampler=sampler)


def calibration_key(family: Family) -> str:
    """Return the key of a calibration; anything in it changes the timing, or the bits."""
    device = f"{read_device_name(family.device)}, {torch.get_num_threads()} threads"
    model = f"{family.name} {family.revision}"
    if (quantization := find_quantization(family)) != "none":
        model = f"{model} {quantization}"
    libraries = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    offload = ""
    if isinstance(family, CanBeOffloaded) and family.offload != "none":
        offload = f", offload {family.offload}"
    return f"{device} | {libraries}{offload} | {model}"


def read_device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def measure_calibration(family: Family, clock: Clock = Clock()) -> Calibration:
    """Time the model on its device, for two or three seconds."""
    timings = measure_times(family, clock)
    dtype = min(timings.dtype_ms, key=lambda name: timings.dtype_ms[name])
    rows = find_batch_limit(timings.bucket_ms)
    row_ms = find_row_ms(timings.bucket_ms)
    steps, sampler = _choose_default_steps(family, row_ms)
    return Calibration(
        dtype, rows, steps, sampler, row_ms, timings.encode_ms, timings.decode_ms, timings.bucket_ms, timings.dtype_ms
    )


def find_batch_limit(bucket_ms: Mapping[int, float]) -> int:
    """Return the batch limit: the knee, or the next bucket if only smaller ones were tried and the largest is quick.

    The two rows of a guided image stay in one forward if that is not slower than two forwards.
    """
    limit = find_knee(_drop_slow_buckets(bucket_ms))
    largest = max(bucket_ms)
    if largest in (limit, 2) and 1 < largest < TIMED_BUCKETS[-1] and bucket_ms[largest] <= SLOW_FORWARD_MS:
        return 2 * largest
    return 2 if limit == 1 and bucket_ms.get(2, float("inf")) <= 2 * bucket_ms[1] * MIN_THROUGHPUT_GAIN else limit


def find_row_ms(bucket_ms: Mapping[int, float]) -> float:
    """Return the milliseconds of a row in a forward at the knee."""
    rows = find_knee(_drop_slow_buckets(bucket_ms))
    return bucket_ms[rows] / rows


def find_knee(bucket_ms: Mapping[int, float]) -> int:
    """Return the smallest bucket whose rows a second no larger one beats by 5 %."""
    throughput = {rows: rows / max(ms, 1e-9) for rows, ms in bucket_ms.items()}
    return min(rows for rows, rate in throughput.items() if rate * MIN_THROUGHPUT_GAIN >= max(throughput.values()))


def _drop_slow_buckets(bucket_ms: Mapping[int, float]) -> Mapping[int, float]:
    """Ignore buckets above two rows if two rows already take too long."""
    if bucket_ms.get(2, 0.0) <= SLOW_FORWARD_MS:
        return bucket_ms
    return {rows: ms for rows, ms in bucket_ms.items() if rows <= 2}


def _choose_default_steps(family: Family, row_ms: float) -> tuple[int, Sampler]:
    """Return the model's own default, if any; else the first that is fast enough and fits its schedule."""
    *candidates, fallback = _fast_enough_defaults(family, row_ms)
    return next((choice for choice in candidates if _has_plan(family, choice[1], choice[0])), fallback)


def _fast_enough_defaults(family: Family, row_ms: float) -> list[tuple[int, Sampler]]:
    """Return the defaults, most steps first, with which a grid of four takes at most a minute; always the last one."""
    if isinstance(family, HasDefaultSampling) and family.default_sampling is not None:
        return [family.default_sampling]
    *candidates, fallback = [choice for choice in DEFAULT_STEPS if choice[1] in family.samplers] or [
        (FALLBACK_STEPS, family.samplers[0])
    ]
    return [*(each for each in candidates if each[0] * GRID_ROWS * row_ms <= 1000 * MAX_GRID_SECONDS), fallback]


def _has_tables(family: Family) -> bool:
    """Return whether its samplers are tables; else its pictures run whole, through its own pipeline."""
    tabled: list[Sampler] = [sampler for sampler in family.samplers if sampler not in PIPELINE_SAMPLERS]
    try:
        return bool(tabled) and bool(family.plan(tabled[0], TABLE_STEPS, 0.0, family.size, family.size))
    except NotTabled:
        return False
    except ValueError:  # of these steps there is no table
        return True


def _has_plan(family: Family, sampler: Sampler, steps: int) -> bool:
    try:
        family.plan(sampler, steps, 0.0, family.size, family.size)
    except ValueError:
        return False
    return True


def read_calibrations(path: Path) -> dict[str, Calibration]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Calibration])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.warning("the calibration in %s cannot be read, measuring anew: %s", path.name, error)
        return {}


def write_calibrations(path: Path, stored: dict[str, Calibration]) -> None:
    """Store the newest calibrations atomically."""
    newest = dict([*stored.items()][-MAX_STORED:])
    try:
        write_atomically(path, msgspec.json.format(msgspec.json.encode(newest)))
    except OSError as error:
        log.warning("the calibration cannot be stored in %s, the next start measures again: %s", path, error)


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
