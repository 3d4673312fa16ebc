"""Measures what batching, CUDA graphs, torch.compile and offload gain on this device.

On a GPU it loads Stable Diffusion 1.5's configuration, on a processor the embedded model.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import torch

from benchmarks.report.figure_row import FAILED, FigureRow, describe_error, print_progress
from engine.calibration.measurement import probe_recipe
from engine.contract import Dtype
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.family import Family
from engine.models.network.forward_runner import FORWARDS_BEFORE_RECORDING
from engine.process.memory_requests import OFFLOADS, Offload

BATCH_SIZES = (2, 4, 8, 16)
ROUNDS = 5
COMPILED_ROUNDS = 10
NO_GPU_NOTE = "not on a processor"
GRAPH_ROW_NAMES = ("CUDA graphs: a forward of 2 rows, without ÷ with", "CUDA graphs: the same bits as without them")
COMPILE_ROW_NAME = "torch.compile: a forward of 2 rows, without ÷ with"
OFFLOAD_ROW_NAMES = (
    "offloaded text encoders: GPU memory at rest, with ÷ without",
    "offloaded text encoders: encoding a prompt, with ÷ without",
    "offloaded layers: GPU memory at rest, with ÷ without",
    "offloaded layers: GPU memory at its peak in a forward of 2 rows, with ÷ without",
    "offloaded layers: a forward of 2 rows, with ÷ without",
    "offloaded layers: largest difference of a forward",
)


class LoadFamily(Protocol):
    """Loads the same model anew each time, with what of it stays off the device."""

    def __call__(self, offload: Offload = "none") -> DiffusersFamily: ...


def measure_speedup_rows(load_family: LoadFamily) -> list[FigureRow]:
    """Return the rows. A method that fails says so in its rows; the others go on."""
    rows = list[FigureRow]()
    for title, names, measure_method in (
        ("rows together", tuple(_batch_row_name(count) for count in BATCH_SIZES), _measure_batches),
        ("CUDA graphs", GRAPH_ROW_NAMES, _measure_cuda_graphs),
        ("torch.compile", (COMPILE_ROW_NAME,), _measure_compile),
        ("offload", OFFLOAD_ROW_NAMES, _measure_offload),
    ):
        print_progress(title)
        method_rows = dict[str, FigureRow]()
        try:
            for row in measure_method(load_family):
                method_rows[row.name] = row
        except Exception as error:  # the report must show any failure of a GPU
            note = f"{FAILED}: {describe_error(error)}"
            method_rows |= {name: FigureRow(name, None, None, "×", note) for name in names if name not in method_rows}
        rows += method_rows.values()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return rows


def _batch_row_name(rows: int) -> str:
    return f"{rows} rows in a forward: rows a second ÷ those of one row"


def _measure_batches(load_family: LoadFamily) -> Iterator[FigureRow]:
    family = load_family()
    dtype = _choose_dtype(family)
    single_row_ms = _measure_ms(_make_forward(family, 1, dtype), family)
    for rows in BATCH_SIZES:
        batch_ms = _measure_ms(_make_forward(family, rows, dtype), family)
        note = f"{family.name}, {dtype}: {single_row_ms:.3g} ms of one row, {batch_ms:.3g} ms of {rows}"
        yield FigureRow(_batch_row_name(rows), rows * single_row_ms / batch_ms, None, "×", note)


def _measure_cuda_graphs(load_family: LoadFamily) -> Iterator[FigureRow]:
    family = load_family()
    if family.device.type != "cuda":
        yield from (FigureRow(name, None, None, "×", NO_GPU_NOTE) for name in GRAPH_ROW_NAMES)
        return
    forward = _make_forward(family, 2, _choose_dtype(family))
    plain_output = forward()
    plain_ms = _measure_ms(forward, family)
    family.forward_runner.enable_cuda_graphs()
    for _ in range(FORWARDS_BEFORE_RECORDING + 1):
        forward()
    graph_ms = _measure_ms(forward, family)
    note = f"{plain_ms:.3g} ms, with graphs {graph_ms:.3g} ms"
    yield FigureRow(GRAPH_ROW_NAMES[0], plain_ms / graph_ms, None, "×", note)
    yield FigureRow(GRAPH_ROW_NAMES[1], float(torch.equal(forward(), plain_output)), "= 1", "")


def _measure_compile(load_family: LoadFamily) -> Iterator[FigureRow]:
    family = load_family()
    if family.device.type != "cuda":
        yield FigureRow(COMPILE_ROW_NAME, None, None, "×", NO_GPU_NOTE)
        return
    forward = _make_forward(family, 2, dtype := _choose_dtype(family))
    plain_output = forward()
    plain_ms = _measure_ms(forward, family)
    network: Any = family.get_network(dtype)
    started_at = time.perf_counter()
    network.forward = torch.compile(network.forward, dynamic=False)
    forward()
    compile_seconds = time.perf_counter() - started_at
    compiled_ms = _measure_ms(forward, family, COMPILED_ROUNDS)
    largest_difference = float((forward() - plain_output).abs().max())
    note = (
        f"{plain_ms:.3g} ms, compiled {compiled_ms:.3g} ms; {compile_seconds:.0f} s to compile; largest difference "
        f"{largest_difference:.2g}"
    )
    yield FigureRow(COMPILE_ROW_NAME, plain_ms / compiled_ms, None, "×", note)


@dataclass(frozen=True)
class _OffloadFigures:
    """Of one way of offloading: MB at rest, MB at the peak of a forward, milliseconds, and the forward's output."""

    rest_mb: float
    peak_mb: float
    encode_ms: float
    forward_ms: float
    output: torch.Tensor


def _measure_offload(load_family: LoadFamily) -> Iterator[FigureRow]:
    if load_family().device.type != "cuda":
        yield from (FigureRow(name, None, None, "×", NO_GPU_NOTE) for name in OFFLOAD_ROW_NAMES)
        return
    whole, text, layers = (_measure_offload_mode(load_family, mode) for mode in OFFLOADS)
    figures = (
        (text.rest_mb, whole.rest_mb, "MB"),
        (text.encode_ms, whole.encode_ms, "ms"),
        (layers.rest_mb, whole.rest_mb, "MB"),
        (layers.peak_mb, whole.peak_mb, "MB"),
        (layers.forward_ms, whole.forward_ms, "ms"),
    )
    for name, (figure, whole_figure, unit) in zip(OFFLOAD_ROW_NAMES, figures, strict=False):
        note = f"{figure:.4g} {unit}, whole {whole_figure:.4g} {unit}"
        yield FigureRow(name, figure / whole_figure, None, "×", note)
    difference = float((layers.output - whole.output).abs().max()) / max(1.0, float(whole.output.abs().max()))
    yield FigureRow(OFFLOAD_ROW_NAMES[-1], difference, "≤ 1e-4", "")


def _measure_offload_mode(load_family: LoadFamily, mode: Offload) -> _OffloadFigures:
    gc.collect()
    torch.cuda.empty_cache()
    family = load_family(mode)
    encode_ms = _measure_ms(_make_text_encode(family), family)
    forward = _make_forward(family, 2, _choose_dtype(family))
    forward_ms = _measure_ms(forward, family)
    output = forward()
    torch.cuda.empty_cache()
    rest_mb = _read_gpu_memory_mb(family)
    torch.cuda.reset_peak_memory_stats(family.device)
    forward()
    peak_mb = torch.cuda.max_memory_allocated(family.device) / 2**20
    return _OffloadFigures(rest_mb, peak_mb, encode_ms, forward_ms, output)


def _choose_dtype(family: DiffusersFamily) -> Dtype:
    return "bfloat16" if "bfloat16" in family.dtypes else family.dtypes[0]


def _make_forward(family: DiffusersFamily, rows: int, dtype: Dtype) -> Callable[[], torch.Tensor]:
    """Return a function that runs our forward at the native size, on fixed values."""
    shape = family.latent_shape(family.size, family.size)
    x = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0)).to(family.device)
    parts = family.encode_conditioning("a cat", probe_recipe(family))
    conditioning = tuple(part.expand(rows, *part.shape) for part in parts)
    timesteps = torch.full((rows,), 500.0, device=family.device)
    return lambda: family.denoise(x, timesteps, conditioning, dtype)


def _make_text_encode(family: DiffusersFamily) -> Callable[[], object]:
    def encode_text() -> object:
        family.text_cache.clear()
        return family.encode_conditioning("a cat", probe_recipe(family))

    return encode_text


def _measure_ms(function: Callable[[], object], family: Family, rounds: int = ROUNDS) -> float:
    """Return the median; an uncounted first call builds kernels."""
    times = list[float]()
    for _ in range(rounds + 1):
        _synchronize_gpu(family)
        started_at = time.perf_counter()
        function()
        _synchronize_gpu(family)
        times.append(1000 * (time.perf_counter() - started_at))
    return median(times[1:])


def _synchronize_gpu(family: Family) -> None:
    if family.device.type == "cuda":
        torch.cuda.synchronize(family.device)


def _read_gpu_memory_mb(family: Family) -> float:
    _synchronize_gpu(family)
    return torch.cuda.memory_allocated(family.device) / 2**20
