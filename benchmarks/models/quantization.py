"""Measures a model with its weights in fewer bits: memory at its peak, a step, and how well the bytes were predicted.

Each storage draws one picture of 1024² in a process of its own. The first is bfloat16 with a whole decode; the others
decode in tiles.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.models.measurement import PROMPT
from benchmarks.models.model_configs import BenchmarkModel
from benchmarks.models.processes import run_and_collect
from benchmarks.report.errors import describe_error
from benchmarks.report.figure_row import FigureRow

PEAK_GOALS = {"int8": "≤ 0.6"}
PREDICTION_GOAL = "≤ 1.11"  # of the larger ÷ the smaller: 0.9 to 1.1 times
SIDE = 1024
TINY_SIDE = 256
STEPS = 2
PROCESSOR_QUANTIZATIONS = ("int8", "float8", "int4")
GPU_QUANTIZATIONS = ("int8", "float8", "int4", "nf4")


@dataclass(frozen=True)
class WeightStorage:
    """How the weights of network and text encoders are stored, and whether the decode runs in tiles."""

    quantization: str
    has_tiles: bool


@dataclass(frozen=True)
class StorageFigures:
    """MB at the peak, seconds of a step, bytes of the weights as predicted and as measured, and the number format."""

    peak_mb: float
    step_seconds: float
    predicted_bytes: float
    stored_bytes: float
    dtype: str


def measure_quantizations(
    model: BenchmarkModel, folder: Path, print_progress: Callable[[str], None], *, on_gpu: bool
) -> Iterator[FigureRow]:
    """Yield the rows of every quantisation. A storage that fails leaves its rows without a figure."""
    whole, failure = _try_measuring(model, folder, WeightStorage("none", False), print_progress)
    if whole is not None and model.side > TINY_SIDE:  # a small model also has a copy of its network
        yield _make_prediction_row(model, "bfloat16", whole)
    for quantization in GPU_QUANTIZATIONS if on_gpu else PROCESSOR_QUANTIZATIONS:
        figures, own_failure = _try_measuring(model, folder, WeightStorage(quantization, True), print_progress)
        yield from _make_rows(model, quantization, whole, figures, own_failure or failure)


def _try_measuring(
    model: BenchmarkModel, folder: Path, storage: WeightStorage, print_progress: Callable[[str], None]
) -> tuple[StorageFigures | None, str]:
    print_progress(f"{model.name}: {storage.quantization}{' with tiles' if storage.has_tiles else ''}")
    try:
        return _measure(model, folder, storage, SIDE if model.side > TINY_SIDE else model.side), ""
    except (RuntimeError, OSError, ValueError, LookupError) as error:
        return None, f"{storage.quantization} failed: {describe_error(error)}"


def _measure(model: BenchmarkModel, folder: Path, storage: WeightStorage, side: int) -> StorageFigures:
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as temp_folder:
        run_spec: dict[str, Any] = {
            "folder": str(folder),
            "prompt": PROMPT,
            "steps": STEPS,
            "guidance": model.guidance,
            "side": side,
            "sampler": model.sampler,
            "pictures": 1,
            "out": temp_folder,
            "data": f"{temp_folder}/data",
            "quantization": storage.quantization,
            "tiles": storage.has_tiles,
        }
        path = Path(temp_folder) / "order.json"
        path.write_text(json.dumps(run_spec))
        command = [sys.executable, "-m", "benchmarks.models.engine_run", str(path)]
        first, *_, last = [line.values for line in run_and_collect(command, Path(temp_folder) / "log")]
    memory = last["memory"]
    return StorageFigures(
        memory.get("gpu_peak") or memory["peak"], last["step"], first["predicted"], first["stored"], first["dtype"]
    )


def _make_rows(
    model: BenchmarkModel, quantization: str, whole: StorageFigures | None, figures: StorageFigures | None, failure: str
) -> Iterator[FigureRow]:
    peak_name = f"{model.name} {quantization}: memory at its peak, with tiles ÷ bfloat16 whole"
    step_name = f"{model.name} {quantization}: a step ÷ bfloat16"
    goal = PEAK_GOALS.get(quantization)
    if whole is None or figures is None:
        yield FigureRow(peak_name, None, goal, "×", failure)
        yield FigureRow(step_name, None, None, "×", failure)
        return
    job = f"{SIDE}², network and text encoders as {quantization}, computed in {figures.dtype}"
    note = f"{figures.peak_mb:.0f} MB, bfloat16 {whole.peak_mb:.0f} MB; {job}"
    yield FigureRow(peak_name, figures.peak_mb / whole.peak_mb, goal, "×", note)
    note = f"{figures.step_seconds:.3g} s, bfloat16 {whole.step_seconds:.3g} s; {job}"
    yield FigureRow(step_name, figures.step_seconds / whole.step_seconds, None, "×", note)
    yield _make_prediction_row(model, quantization, figures)


def _make_prediction_row(model: BenchmarkModel, quantization: str, figures: StorageFigures) -> FigureRow:
    ratio = figures.predicted_bytes / figures.stored_bytes
    note = f"predicted {figures.predicted_bytes / 1e6:.1f} MB, measured {figures.stored_bytes / 1e6:.1f} MB"
    name = f"{model.name} {quantization}: bytes of the weights, predicted and measured, the larger ÷ the smaller"
    return FigureRow(name, max(ratio, 1 / ratio), PREDICTION_GOAL, "×", note)
