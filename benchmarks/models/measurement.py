"""Runs both sides of one model, part after part, and turns their figures into rows of ratio and goal.

If a part fails, it records the failure in place of the figures, and goes on with the other parts.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import diffusers_run
from benchmarks.models.model_configs import BenchmarkModel
from benchmarks.models.processes import DarkroomServer, OutputLine, darkroom_command, run_and_collect, run_server
from benchmarks.models.random_weights import SCALE, ensure_adapter, save_picture
from benchmarks.report.figure_row import FigureRow, describe_error, print_progress

PROMPT = "a lighthouse at night"
DTYPE = "bfloat16"  # of the folder, and so of diffusers
SETTLE_SECONDS = 2.0  # seconds after a picture until memory is at rest
READ_BYTES = 2**24


@dataclass
class Figures:
    """Seconds, pictures a second or MB, by name. `failures` has a sentence for each part that could not be measured."""

    values: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    dtype: str = ""

    def add_measured(self, name: str, measure_part: Callable[[], dict[str, float]]) -> None:
        try:
            self.values |= measure_part()
        except (RuntimeError, OSError, ValueError, LookupError) as error:
            self.failures.append(f"{name} failed: {describe_error(error)}")


def measure_model(model: BenchmarkModel, model_folder: Path) -> Figures:
    """Measure all figures of one model. The sides alternate, so that a slow hour of the machine affects both."""
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as temp_folder:
        runner = _ModelRunner(model, model_folder, Path(temp_folder), figures)
        _fill_page_cache(model_folder)
        for name, measure_part in runner.list_measurements().items():
            print_progress(f"{model.name}: {name}")
            figures.add_measured(name, measure_part)
    return figures


def _fill_page_cache(folder: Path) -> None:
    """Read the weights into the page cache, so that the first side does not pay for the disk."""
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.read(READ_BYTES):
                pass


class _ModelRunner:
    def __init__(self, model: BenchmarkModel, model_folder: Path, temp_folder: Path, figures: Figures) -> None:
        self._model = model
        self._model_folder = model_folder
        self._temp_folder = temp_folder
        self._figures = figures

    def list_measurements(self) -> dict[str, Callable[[], dict[str, float]]]:
        """Return the parts by name, the sides alternating."""
        measurements: dict[str, Callable[[], dict[str, float]]] = {
            "diffusers, first start": lambda: self._measure_diffusers("first", picture_count=2, decode_count=2),
            "darkroom imagine, first start ever": lambda: self._measure_imagine("first"),
            "diffusers, second start": lambda: self._measure_diffusers("second", picture_count=1, decode_count=1),
            "darkroom imagine, second start": lambda: self._measure_imagine("second"),
            "a step and a decode of the engine": self._measure_engine,
            "darkroom up": self._measure_server,
        }
        if self._model.takes_controls:
            measurements["steps with two ControlNets and a reference picture"] = self._measure_controls
            measurements["steps with a reference picture"] = self._measure_reference
        return measurements

    def _measure_diffusers(self, start_name: str, picture_count: int, decode_count: int) -> dict[str, float]:
        run_spec = self._make_run_spec(picture_count) | {"decodes": decode_count}
        output_lines = self._run("diffusers", [diffusers_run.__file__], run_spec)
        picture_lines = [line for line in output_lines if "picture" in line.values]
        loaded_memory = output_lines[0].values["loaded"]
        figures = {f"diffusers {start_name}": picture_lines[0].elapsed_seconds}
        figures |= {f"diffusers loaded {name}": value for name, value in loaded_memory.items()}
        figures |= {f"diffusers {name}": value for name, value in picture_lines[-1].values["memory"].items()}
        return figures | self._best_seconds("diffusers", output_lines)

    def _measure_engine(self) -> dict[str, float]:
        run_spec = self._make_run_spec(picture_count=2) | {"data": str(self._temp_folder / "data")}
        output_lines = self._run("engine", ["-m", "benchmarks.models.engine_run"], run_spec)
        self._figures.dtype = str(output_lines[0].values["dtype"])
        memory = output_lines[-1].values["memory"]
        gpu_memory = {f"ours {name}": memory[name] for name in ("gpu", "gpu_peak") if name in memory}
        return gpu_memory | self._best_seconds("ours", output_lines)

    def _measure_controls(self) -> dict[str, float]:
        run_spec = self._make_run_spec(1) | {"data": str(self._temp_folder / "data")}
        [output_line] = self._run("controls", ["-m", "benchmarks.models.control_run"], run_spec)
        values = output_line.values
        return {
            "ours control step": values["step"],
            "diffusers control step": values["diffusers"],
            "ours control outside": 100 * values["outside"] / values["step"],
        }

    def _measure_reference(self) -> dict[str, float]:
        """Measure a step of both sides with a reference picture."""
        data = self._model_folder.parent / f"{self._model_folder.name}-data"
        with torch.device("meta"):
            unet = self._model.build_pipeline().unet
        adapter = ensure_adapter(data / "ip-adapters" / "plus", unet)
        picture = save_picture(self._temp_folder / "reference.png")
        run_spec = self._make_run_spec(picture_count=2) | {
            "data": str(self._temp_folder / "data"),
            "decodes": 0,
            "reference": {"adapter": str(adapter), "picture": str(picture), "scale": SCALE},
        }
        seconds = dict[str, float]()
        for side, program in (
            ("diffusers", [diffusers_run.__file__]),
            ("ours", ["-m", "benchmarks.models.engine_run"]),
        ):
            steps = [line.values.get("step") for line in self._run(f"{side}-reference", program, run_spec)]
            seconds[f"{side} reference step"] = min(step for step in steps if step)
        return seconds

    def _best_seconds(self, side: str, output_lines: list[OutputLine]) -> dict[str, float]:
        """Return the minimum over several runs, the least disturbed one.

        The first picture does not count as a next one.
        """
        picture_seconds = [line.values["picture"] for line in output_lines if "picture" in line.values]
        step_seconds = [line.values["step"] for line in output_lines if line.values.get("step")]
        decode_seconds = [line.values["decode"] for line in output_lines if "decode" in line.values]
        measured = {"alone": picture_seconds[1:], "step": step_seconds, "decode": decode_seconds}
        minima = {f"{side} {name}": min(seconds) for name, seconds in measured.items() if seconds}
        return {name: min(value, self._figures.values.get(name, value)) for name, value in minima.items()}

    def _measure_imagine(self, start_name: str) -> dict[str, float]:
        model = self._model
        options = {"--model": self._model_folder, "--steps": model.steps, "--count": 1, "--guidance": model.guidance}
        options |= {"--seed": 1, "--out": self._temp_folder, "--data": self._temp_folder / "data"}
        options |= {"--sampler": model.sampler} if model.sampler else {}
        words = [str(word) for option in options.items() for word in option]
        command = darkroom_command("imagine", PROMPT, *words, "--json")
        [output_line] = run_and_collect(command, self._log_path("imagine"))
        if output_line.values["width"] % model.side:  # a small model's pictures are upscaled
            raise RuntimeError(f"the picture has {output_line.values['width']} pixels a side instead of {model.side}")
        return {f"ours {start_name}": output_line.elapsed_seconds}

    def _measure_server(self) -> dict[str, float]:
        """Measure `darkroom up` on a new data folder, so that this is a first start, too."""
        model_option = ("--model", str(self._model_folder))
        with run_server(self._temp_folder / "chatroom", self._log_path("up"), *model_option) as server:
            cookie = server.open_session()
            first_job = server.draw_picture(self._make_request(10), cookie)
            first_preview_at = first_job.first_frame_at or first_job.picture_at
            figures = {"ours first up": first_job.picture_at - server.started_at}
            figures["ours preview"] = first_preview_at - server.started_at
            later_jobs = [server.draw_picture(self._make_request(11 + number), cookie) for number in range(2)]
            figures["ours next"] = min(job.picture_at - job.posted_at for job in later_jobs)
            time.sleep(SETTLE_SECONDS)
            figures |= {f"ours {name}": value for name, value in server.read_memory().items()}
            self._figures.values |= figures  # kept even if many users at once fail
            for users in self._model.user_counts:
                figures[f"ours {users} users"] = self._measure_users(server, users)
            if (peak_memory := server.read_memory().get("peak")) is not None:
                figures["ours crowd peak"] = peak_memory
        return figures

    def _measure_users(self, server: DarkroomServer, users: int) -> float:
        """Return the pictures a second of `users` at once."""
        requests = [self._make_request(100 * users + number) for number in range(users)]
        jobs = server.draw_concurrently(requests)
        return users / (max(job.picture_at for job in jobs) - min(job.posted_at for job in jobs))

    def _make_run_spec(self, picture_count: int) -> dict[str, Any]:
        model = self._model
        return {
            "folder": str(self._model_folder),
            "dtype": DTYPE,
            "prompt": PROMPT,
            "steps": model.steps,
            "guidance": model.guidance,
            "side": model.side,
            "sampler": model.sampler,
            "pictures": picture_count,
            "out": str(self._temp_folder),
        }

    def _make_request(self, seed: int) -> dict[str, Any]:
        """Return the same job as the HTTP API takes it."""
        model = self._model
        request: dict[str, Any] = {
            "prompt": PROMPT,
            "model": self._model_folder.name,
            "steps": model.steps,
            "count": 1,
            "seed": seed,
        }
        request["guidance"] = model.guidance
        return request | ({"sampler": model.sampler} if model.sampler else {})

    def _run(self, log_name: str, program: list[str], run_spec: dict[str, Any]) -> list[OutputLine]:
        """Run a Python program on a file with this specification."""
        path = self._temp_folder / "order.json"
        path.write_text(json.dumps(run_spec))
        return run_and_collect([sys.executable, *program, str(path)], self._log_path(log_name))

    def _log_path(self, name: str) -> Path:
        return self._temp_folder / f"{name}.log"


@dataclass(frozen=True)
class RatioRow:
    """Our figure divided by diffusers'. With `is_rate`, ours is pictures a second and diffusers' seconds a picture."""

    name: str
    darkroom_key: str
    diffusers_key: str
    goal: str | None
    unit: str = "s"
    is_rate: bool = False


RATIO_ROWS = (
    RatioRow("command to the first preview, by diffusers' to its picture", "preview", "first", "≤ 0.5"),
    RatioRow("command to the first picture, first start ever", "first", "first", "≤ 1.3"),
    RatioRow("command to the first picture, second start", "second", "second", "≤ 1.1"),
    RatioRow("the next picture, one user", "next", "alone", "≤ 1"),
    RatioRow("a step, nobody watches", "step", "step", None),
    RatioRow("decode, latents to PNG", "decode", "decode", "≤ 1.05"),
    RatioRow("memory at rest, engine", "rest", "rest", "≤ 1.05", "MB"),
    RatioRow("memory at rest, all of darkroom up", "all_rest", "rest", None, "MB"),
    RatioRow("memory at its peak, engine, one user", "peak", "peak", "≤ 1.15", "MB"),
    RatioRow("memory at its peak, all of darkroom up, one user", "all_peak", "peak", None, "MB"),
)
GPU_RATIO_ROWS = (
    RatioRow("GPU memory at rest", "gpu", "gpu", "≤ 1.05", "MB"),
    RatioRow("GPU memory at its peak, one user", "gpu_peak", "gpu_peak", "≤ 1.15", "MB"),
)
CONTROL_ROW = RatioRow("a step with two ControlNets and a reference picture", "control step", "control step", "≤ 1.05")
REFERENCE_ROW = RatioRow("a step with a reference picture alone", "reference step", "reference step", "≤ 1.05")
USER_COUNTS = (2, 4)


def make_rows(model: BenchmarkModel, figures: Figures, on_gpu: bool) -> list[FigureRow]:
    ratios = [*RATIO_ROWS, *(_make_user_ratio(users) for users in USER_COUNTS), *(GPU_RATIO_ROWS if on_gpu else ())]
    control_rows = [_make_outside_row(model, figures)] if model.takes_controls else []
    if model.takes_controls:
        ratios += [CONTROL_ROW, REFERENCE_ROW]
    return [*(_make_row(model, figures, ratio) for ratio in ratios), *control_rows]


def _make_outside_row(model: BenchmarkModel, figures: Figures) -> FigureRow:
    name = f"{model.name}: time outside the networks a step, two ControlNets and a reference"
    share = figures.values.get("ours control outside")
    note = "; ".join(figures.failures) if share is None else _describe_job(model, figures)
    return FigureRow(name, share, "≤ 1", "%", note)


def _make_user_ratio(users: int) -> RatioRow:
    return RatioRow(f"{users} users at once, pictures a second", f"{users} users", "alone", "≥ 1", is_rate=True)


def _make_row(model: BenchmarkModel, figures: Figures, ratio: RatioRow) -> FigureRow:
    name = f"{model.name}: {ratio.name}"
    darkroom_figure = figures.values.get(f"ours {ratio.darkroom_key}")
    diffusers_figure = figures.values.get(f"diffusers {ratio.diffusers_key}")
    if not darkroom_figure or not diffusers_figure:
        if ratio.is_rate and not any(ratio.darkroom_key == f"{users} users" for users in model.user_counts):
            return FigureRow(name, None, None, "×", "left out on a processor, so that all rows fit into the time")
        return FigureRow(name, None, ratio.goal, "×", _missing_note(figures, ratio))
    figure = darkroom_figure * diffusers_figure if ratio.is_rate else darkroom_figure / diffusers_figure
    note = _ratio_note(model, figures, ratio, darkroom_figure, diffusers_figure)
    return FigureRow(name, figure, ratio.goal, "×", note)


def _missing_note(figures: Figures, ratio: RatioRow) -> str:
    """Say why there is no figure, and the one figure that was measured."""
    keys = {"ours": ratio.darkroom_key, "diffusers": ratio.diffusers_key}
    sides = {side: figures.values.get(f"{side} {key}") for side, key in keys.items()}
    measured = [f"{side} {value:.4g} {ratio.unit}" for side, value in sides.items() if value and not ratio.is_rate]
    return "; ".join(figures.failures + measured) or "this machine does not report it"


def _ratio_note(
    model: BenchmarkModel, figures: Figures, ratio: RatioRow, darkroom_figure: float, diffusers_figure: float
) -> str:
    shown_diffusers = 1 / diffusers_figure if ratio.is_rate else diffusers_figure
    unit = "a second" if ratio.is_rate else ratio.unit
    parts = [
        f"ours {darkroom_figure:.4g}, diffusers {shown_diffusers:.4g} {unit}",
        _describe_job(model, figures),
        model.note,
    ]
    if ratio.darkroom_key == "peak" and (peak_memory := figures.values.get("ours crowd peak")):
        parts.insert(1, f"{peak_memory:.4g} {unit} after {max(model.user_counts)} users at once")
    return "; ".join(part for part in parts if part)


def _describe_job(model: BenchmarkModel, figures: Figures) -> str:
    sampler = model.sampler or "the model's own sampler"
    dtype_text = DTYPE if figures.dtype in ("", DTYPE) else f"{DTYPE} (ours chose {figures.dtype})"
    return f"{model.side}², {model.steps} steps of {sampler}, guidance {model.guidance:g}, {dtype_text}"
