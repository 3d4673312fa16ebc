"""The `darkroom bench` command: result rows on standard output, progress on standard error."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from benchmarks.engine.suite import ComparedModels
    from benchmarks.report.figure_row import FigureRow
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Only the README's first claims, in a few minutes; all takes about twenty.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Only plot throughput and first preview against users into this PNG."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a list of rows as JSON.")] = False,
) -> None:
    """Measure this machine side by side with diffusers, in one run. Let nothing else run meanwhile.

    Rows that miss their goal say MISS (JSON: pass false); the exit code stays 0. `bench discord` measures the bot.
    """
    from benchmarks.engine.suite import load_models
    from benchmarks.report.figure_row import print_rows

    with tempfile.TemporaryDirectory() as temp_folder:
        models = load_models(Path(temp_folder))
    if plot:
        return _plot_users(models, plot)
    print_rows(list(_measure_rows(models, quick)), as_json=json)


def _measure_rows(models: ComparedModels, quick: bool) -> Iterator[FigureRow]:
    from benchmarks.engine.suite import measure_all_rows, measure_quick_rows, measure_service_rows
    from benchmarks.engine.throughput import measure_gpu_rows
    from benchmarks.report.figure_row import print_progress
    from benchmarks.simulated_day import simulate_day_rows

    yield from measure_quick_rows(models) if quick else measure_all_rows(models)
    if not quick:
        print_progress("a busy server's day, simulated")
        yield from simulate_day_rows()
        yield from measure_gpu_rows()
    print_progress("the running program, measured from outside")
    yield from measure_service_rows()


def _plot_users(models: ComparedModels, path: Path) -> None:
    from benchmarks.engine.users_plot import STEPS, measure_user_counts, plot_measurements
    from benchmarks.engine.workload import cast_pipeline
    from benchmarks.report.figure_row import print_progress
    from engine.calibration.calibration import read_device_name

    load = replace(models.load, steps=STEPS)
    measurements = measure_user_counts(models.family, cast_pipeline(models.pipeline, load.dtype), load)
    device_name = read_device_name(models.family.device)
    plot_measurements(measurements, path, f"embedded model, {load.steps} steps of DDPM, {load.dtype}, {device_name}")
    print_progress(f"{path}: {len(measurements)} numbers of users, both systems in {load.dtype}")


def main(argv: list[str] | None = None) -> int:
    return int(app(argv, prog_name="darkroom bench", standalone_mode=False) or 0)


if __name__ == "__main__":
    raise SystemExit(main())
