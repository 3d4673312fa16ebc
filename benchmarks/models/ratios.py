"""Turns the figures of both sides into rows of ratio and goal. Runs nothing."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.models.measurement import DTYPE, Figures
from benchmarks.models.model_configs import BenchmarkModel
from benchmarks.report.figure_row import FigureRow


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
    return FigureRow(
        name, figure, ratio.goal, "×", _ratio_note(model, figures, ratio, darkroom_figure, diffusers_figure)
    )


def _missing_note(figures: Figures, ratio: RatioRow) -> str:
    """Say why there is no figure, and the one figure that was measured."""
    side_figures = {
        side: figures.values.get(f"{side} {key}")
        for side, key in (("ours", ratio.darkroom_key), ("diffusers", ratio.diffusers_key))
    }
    measured = [
        f"{side} {value:.4g} {ratio.unit}" for side, value in side_figures.items() if value and not ratio.is_rate
    ]
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
