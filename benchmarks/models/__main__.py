"""The `darkroom bench models` command: SD 1.5, SDXL and a reduced Flux beside diffusers, in real configurations.

It builds the random weights in a cache folder. All models take about 40 minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.report.figure_row import FigureRow, print_progress, print_rows

if TYPE_CHECKING:
    from benchmarks.models.measurement import Figures
    from benchmarks.models.model_configs import BenchmarkModel

MODEL_NAMES = ("sd15", "sdxl", "flux")
# beside diffusers; offload and tiles; weights in fewer bits; memory of every family
PART_NAMES = ("speed", "memory", "quantization", "families")
QUANTIZED_MODELS = ("sdxl",)  # on a processor; on a GPU all
CACHE_FOLDER = "bench-models"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def bench_models(
    only: Annotated[
        str, typer.Option(metavar="NAMES", help="Some of sd15, sdxl and flux, as in sd15,flux; all by default.")
    ] = "",
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the models are built and kept; by default in the data folder."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=2, max=100, help="Steps of every job.")] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="The same rows with tiny models, as a test of the benchmark.")
    ] = False,
    parts: Annotated[
        str, typer.Option(metavar="PARTS", help=f"Some of {', '.join(PART_NAMES)}, with commas; all by default.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print a list of rows as JSON.")] = False,
) -> None:
    """Measure models of real size side by side with diffusers: first preview and picture, users, step, decode, memory.

    The models have their published configurations and random weights (13 GB in the cache folder). A side that fails
    leaves its rows without a figure; the exit code stays 0. Let nothing else run meanwhile.
    """
    names = parse_names(only, MODEL_NAMES)
    part_names = parse_names(parts, PART_NAMES, "part ")
    cache_folder = cache or default_cache_folder()
    rows = list(measure_models(names, cache_folder, steps=steps, is_tiny=tiny, part_names=part_names))
    print_rows(rows, as_json=json)


def parse_names(text: str, known_names: tuple[str, ...], kind: str = "") -> tuple[str, ...]:
    """Split a list of names at commas; an empty one means all. Raises `typer.BadParameter` for an unknown name."""
    names = tuple(name.strip() for name in text.split(",") if name.strip()) or known_names
    if unknown := [name for name in names if name not in known_names]:
        raise typer.BadParameter(f"There is no {kind}{unknown[0]} here; there are {', '.join(known_names)}.")
    return names


def default_cache_folder() -> Path:
    from engine.process.settings import find_data_folder

    return find_data_folder() / "cache" / CACHE_FOLDER


def measure_models(
    names: tuple[str, ...],
    cache_folder: Path,
    *,
    steps: int | None,
    is_tiny: bool,
    part_names: tuple[str, ...] = PART_NAMES,
) -> Iterator[FigureRow]:
    import torch

    from benchmarks.models.model_configs import list_real_models, list_tiny_models

    on_gpu = torch.cuda.is_available()
    for model in list_tiny_models() if is_tiny else list_real_models(on_gpu):
        if model.name in names:
            folder = cache_folder / ("tiny" if is_tiny else f"real-{model.side}") / model.name
            yield from _measure_model(replace(model, steps=steps or model.steps), folder, on_gpu, part_names)
    if "families" in part_names:
        from benchmarks.models.family_memory import measure_family_rows

        yield from measure_family_rows()


def _measure_model(
    model: BenchmarkModel, folder: Path, on_gpu: bool, part_names: tuple[str, ...]
) -> Iterator[FigureRow]:
    """Build the model's folder if it is missing, and measure the parts; if building fails, the rows say so."""
    from benchmarks.models.measurement import Figures
    from benchmarks.models.random_weights import ensure_model_folder

    figures = Figures()
    print_progress(f"{model.name}: its folder is {folder}")
    figures.add_measured("building the model", lambda: ensure_model_folder(folder, model.build_pipeline) and {})
    if "speed" in part_names:
        yield from _measure_speed(model, folder, figures, on_gpu)
    if "memory" in part_names and not figures.failures:
        from benchmarks.models.memory_rows import measure_memory_rows

        yield from measure_memory_rows(model, folder)
    if "quantization" in part_names and not figures.failures and (on_gpu or model.name in QUANTIZED_MODELS):
        from benchmarks.models.memory_rows import measure_quantizations

        yield from measure_quantizations(model, folder, on_gpu=on_gpu)


def _measure_speed(model: BenchmarkModel, folder: Path, figures: Figures, on_gpu: bool) -> Iterator[FigureRow]:
    """Yield the rows beside diffusers. `figures` has the failures so far."""
    from benchmarks.models.measurement import make_rows, measure_model

    if not figures.failures:
        figures = measure_model(model, folder)
    for failure in figures.failures:
        print_progress(failure)
    yield from make_rows(model, figures, on_gpu)


def main(argv: list[str] | None = None) -> int:
    return int(app(argv, prog_name="darkroom bench models", standalone_mode=False) or 0)


if __name__ == "__main__":
    raise SystemExit(main())
