"""Rows on memory: predicted and measured, with offloaded layers, in tiles, and with the weights in fewer bits.

Each quantisation draws one picture of 1024² in a process of its own. The first is bfloat16 with a whole decode; the
others decode in tiles.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.models.measurement import DTYPE, PROMPT
from benchmarks.models.model_configs import BenchmarkModel
from benchmarks.models.processes import run_and_collect
from benchmarks.report.figure_row import FAILED, FigureRow, describe_error, print_progress
from engine.process.memory_requests import Offload

PREDICTION_GOAL = "0.9 to 1.1"
PARITY_GOAL = "≤ 1e-4"
STEPS = 3  # the first step is not timed
MAX_SIDE = 512  # pixels: memory of weights does not depend on the picture
TINY_TILE = 32  # pixels, for tiny autoencoders
MB = 2**20
Figures = dict[str, Any]
FAILURES = (RuntimeError, OSError, ValueError, LookupError)


def measure_memory_rows(model: BenchmarkModel, folder: Path) -> Iterator[FigureRow]:
    """Yield the rows of one model. A part that fails says so in its row, and the others go on."""
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as temp_folder:
        runner = _MemoryRunner(model, folder, Path(temp_folder))
        runs: dict[Offload, Figures] = {}
        for offload in ("none", "layers"):
            print_progress(f"{model.name}: memory, offload {offload}")
            try:
                runs[offload] = runner.run_offload(offload)
            except FAILURES as error:
                note = f"{FAILED}: {describe_error(error)}"
                yield FigureRow(f"{model.name}: memory, offload {offload}", None, None, "×", note)
        yield from _make_offload_rows(model, runs)
        print_progress(f"{model.name}: its autoencoder in tiles")
        try:
            yield from _make_tiling_rows(model, runner.run_tiling())
        except FAILURES as error:
            yield FigureRow(f"{model.name}: tiles", None, None, "×", f"{FAILED}: {describe_error(error)}")


class _MemoryRunner:
    def __init__(self, model: BenchmarkModel, folder: Path, temp_folder: Path) -> None:
        self._model = model
        self._folder = folder
        self._temp_folder = temp_folder

    def run_offload(self, offload: Offload) -> Figures:
        model = self._model
        latents = self._temp_folder / f"{offload}.safetensors"
        run_spec = {
            "folder": str(self._folder),
            "data": str(self._temp_folder),
            "offload": offload,
            "prompt": PROMPT,
            "sampler": model.sampler,
            "steps": STEPS,
            "guidance": model.guidance,
            "side": min(model.side, MAX_SIDE),
            "latents": str(latents),
            "is_large": True,
        }
        [line] = self._run("memory_run", run_spec)
        return line | {"latents": load_file(latents)["latents"]}

    def run_tiling(self) -> list[Figures]:
        is_tiny = self._model.side < MAX_SIDE
        tile = TINY_TILE if is_tiny else MAX_SIDE
        run_spec = {"folder": str(self._folder), "dtype": DTYPE, "tile": tile, "side": 2 * tile}
        return self._run("tiling_run", run_spec)

    def _run(self, program: str, run_spec: dict[str, Any]) -> list[Figures]:
        path = self._temp_folder / f"{program}.json"
        path.write_text(json.dumps(run_spec))
        command = [sys.executable, "-m", f"benchmarks.models.{program}", str(path)]
        return [line.values for line in run_and_collect(command, self._temp_folder / f"{program}.log")]


def _make_offload_rows(model: BenchmarkModel, runs: dict[Offload, Figures]) -> Iterator[FigureRow]:
    whole = runs.get("none")
    layers = runs.get("layers")
    if whole:
        yield _make_prediction_row(f"{model.name}: memory at rest, predicted ÷ measured", whole)
    if layers:
        predicted_mb = layers["predicted_group"] / MB
        measured_mb = layers["largest_group"] / MB
        ratio = predicted_mb / measured_mb if measured_mb else None
        note = f"{predicted_mb:.4g} MB of the network at once predicted, {measured_mb:.4g} MB measured"
        yield FigureRow(f"{model.name}: offloaded layers, predicted ÷ measured", ratio, PREDICTION_GOAL, "×", note)
    if not whole or not layers:
        return
    peaks_mb = _used_mb(layers, "peak"), _used_mb(whole, "peak")
    yield _make_ratio_row(f"{model.name}: offloaded layers, memory at its peak in the steps", *peaks_mb, "MB")
    yield _make_ratio_row(f"{model.name}: offloaded layers, a step", layers["step"], whole["step"], "s")
    largest = max(1.0, float(whole["latents"].abs().max()))
    difference = float((layers["latents"] - whole["latents"]).abs().max()) / largest
    name = f"{model.name}: offloaded layers, latents against those without"
    yield FigureRow(name, difference, PARITY_GOAL, "", f"{whole['dtype']}, {STEPS} steps")


def _make_prediction_row(name: str, run: Figures) -> FigureRow:
    measured_mb = _used_mb(run, "rest")
    predicted_mb = run["predicted"] / MB
    note = f"{predicted_mb:.4g} MB predicted, {measured_mb:.4g} MB measured once all weights are read, {run['dtype']}"
    return FigureRow(name, predicted_mb / measured_mb, PREDICTION_GOAL, "×", note)


def _make_ratio_row(name: str, figure: float, whole_figure: float, unit: str) -> FigureRow:
    note = f"{figure:.4g} {unit}, without {whole_figure:.4g} {unit}"
    return FigureRow(f"{name}, with ÷ without", figure / whole_figure, None, "×", note)


def _make_tiling_rows(model: BenchmarkModel, lines: list[Figures]) -> Iterator[FigureRow]:
    for line in lines:
        name = f"{model.name}: {line['name']} in tiles"
        memory, seconds = line["tiled_mb"] / line["whole_mb"], line["tiled_seconds"] / line["whole_seconds"]
        note = f"{line['tiled_mb']:.4g} MB, whole {line['whole_mb']:.4g} MB, predicted {line['predicted_mb']:.4g} MB"
        yield FigureRow(f"{name}, memory, tiles ÷ whole", memory, None, "×", note)
        note = f"{line['tiled_seconds']:.4g} s, whole {line['whole_seconds']:.4g} s"
        yield FigureRow(f"{name}, time, tiles ÷ whole", seconds, None, "×", note)


def _used_mb(run: Figures, moment: str) -> float:
    """Return the MB that the model takes, of the GPU's memory if there is one: `rest` now, or at the `peak`."""
    if "gpu" in run["base"]:
        key = "gpu_peak" if moment == "peak" else "gpu"
        return run[moment][key] - run["base"]["gpu"]
    return run[moment]["peak" if moment == "peak" else "rest"] - run["base"]["rest"]


PEAK_GOALS = {"int8": "≤ 0.6"}
BYTES_GOAL = "≤ 1.11"  # of the larger ÷ the smaller: 0.9 to 1.1 times
SIDE = 1024
TINY_SIDE = 256
QUANTIZED_STEPS = 2
PROCESSOR_QUANTIZATIONS = ("int8", "float8", "int4")
GPU_QUANTIZATIONS = ("int8", "float8", "int4", "nf4")


@dataclass(frozen=True)
class StorageFigures:
    """MB at the peak, seconds of a step, bytes of the weights as predicted and as measured, and the number format."""

    peak_mb: float
    step_seconds: float
    predicted_bytes: float
    stored_bytes: float
    dtype: str


def measure_quantizations(model: BenchmarkModel, folder: Path, *, on_gpu: bool) -> Iterator[FigureRow]:
    """Yield the rows of every quantisation. One that fails leaves its rows without a figure."""
    whole, failure = _try_measuring(model, folder, "none")
    if whole is not None and model.side > TINY_SIDE:  # a small model also has a copy of its network
        yield _make_bytes_row(model, "bfloat16", whole)
    for quantization in GPU_QUANTIZATIONS if on_gpu else PROCESSOR_QUANTIZATIONS:
        figures, own_failure = _try_measuring(model, folder, quantization)
        yield from _make_quantized_rows(model, quantization, whole, figures, own_failure or failure)


def _try_measuring(model: BenchmarkModel, folder: Path, quantization: str) -> tuple[StorageFigures | None, str]:
    """Measure weights that are stored so; quantised ones are decoded in tiles."""
    print_progress(f"{model.name}: {quantization}{'' if quantization == 'none' else ' with tiles'}")
    try:
        return _measure(model, folder, quantization, SIDE if model.side > TINY_SIDE else model.side), ""
    except FAILURES as error:
        return None, f"{quantization} failed: {describe_error(error)}"


def _measure(model: BenchmarkModel, folder: Path, quantization: str, side: int) -> StorageFigures:
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as temp_folder:
        run_spec: dict[str, Any] = {
            "folder": str(folder),
            "prompt": PROMPT,
            "steps": QUANTIZED_STEPS,
            "guidance": model.guidance,
            "side": side,
            "sampler": model.sampler,
            "pictures": 1,
            "out": temp_folder,
            "data": f"{temp_folder}/data",
            "quantization": quantization,
            "tiles": quantization != "none",
        }
        path = Path(temp_folder) / "order.json"
        path.write_text(json.dumps(run_spec))
        command = [sys.executable, "-m", "benchmarks.models.engine_run", str(path)]
        first, *_, last = [line.values for line in run_and_collect(command, Path(temp_folder) / "log")]
    peak_mb = last["memory"].get("gpu_peak") or last["memory"]["peak"]
    return StorageFigures(peak_mb, last["step"], first["predicted"], first["stored"], first["dtype"])


def _make_quantized_rows(
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
    yield _make_bytes_row(model, quantization, figures)


def _make_bytes_row(model: BenchmarkModel, quantization: str, figures: StorageFigures) -> FigureRow:
    ratio = figures.predicted_bytes / figures.stored_bytes
    note = f"predicted {figures.predicted_bytes / 1e6:.1f} MB, measured {figures.stored_bytes / 1e6:.1f} MB"
    name = f"{model.name} {quantization}: bytes of the weights, predicted and measured, the larger ÷ the smaller"
    return FigureRow(name, max(ratio, 1 / ratio), BYTES_GOAL, "×", note)
