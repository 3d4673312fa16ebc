"""The `darkroom bench models` command: SD 1.5, SDXL and a reduced Flux beside diffusers, in real configurations.

It builds the random weights in a cache folder. All models take about 40 minutes on two cores.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from engine.bench.models.sizes import Subject
    from engine.bench.row import Row

NAMES = ("sd15", "sdxl", "flux")
CACHE = "bench-models"
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
    json: Annotated[bool, typer.Option("--json", help="Print a list of rows as JSON.")] = False,
) -> None:
    """Measure models of real size side by side with diffusers: first preview and picture, users, step, decode, memory.

    The models have their published configurations and random weights (13 GB in the cache folder). A side that fails
    leaves its rows without a figure; the exit code stays 0. Let nothing else run meanwhile.
    """
    from engine.bench.row import as_json, as_table

    rows = list(measure_models(choose(only), cache or default_cache(), steps=steps, tiny=tiny))
    typer.echo(as_json(rows) if json else as_table(rows))


def choose(only: str) -> tuple[str, ...]:
    """Split a list of names at commas; an empty one means all. Raises `typer.BadParameter` for an unknown name."""
    names = tuple(name.strip() for name in only.split(",") if name.strip()) or NAMES
    if unknown := [name for name in names if name not in NAMES]:
        raise typer.BadParameter(f"There is no {unknown[0]} here; there are {', '.join(NAMES)}.")
    return names


def default_cache() -> Path:
    from engine.config import default_data

    return Path(os.environ.get("DARKROOM_DATA") or default_data()) / "cache" / CACHE


def measure_models(names: tuple[str, ...], cache: Path, *, steps: int | None, tiny: bool) -> Iterator[Row]:
    import torch

    from engine.bench.models.sizes import real_sizes, tiny_sizes

    on_card = torch.cuda.is_available()
    for subject in tiny_sizes() if tiny else real_sizes(on_card):
        if subject.name in names:
            sized = replace(subject, steps=steps or subject.steps)
            yield from _measure_one(sized, cache / ("tiny" if tiny else f"real-{subject.side}") / subject.name, on_card)


def _measure_one(subject: Subject, folder: Path, on_card: bool) -> Iterator[Row]:
    """Build the model's folder if it is missing, and measure it; if building fails, the rows say so."""
    from engine.bench.models.folder import provide_folder
    from engine.bench.models.rows import make_rows
    from engine.bench.models.sides import Figures, measure

    found = Figures()
    _say(f"{subject.name}: its folder is {folder}")
    found.attempt("building the model", lambda: provide_folder(folder, subject.build) and {})
    if not found.failures:
        found = measure(subject, folder, _say)
    for failure in found.failures:
        _say(failure)
    yield from make_rows(subject, found, on_card)


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)


def main(args: list[str] | None = None) -> int:
    return int(app(args, prog_name="darkroom bench models", standalone_mode=False) or 0)


if __name__ == "__main__":
    raise SystemExit(main())
