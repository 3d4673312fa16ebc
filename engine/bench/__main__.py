"""The `darkroom bench` command: result rows on standard output, progress on standard error."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from engine.bench.claims import Sides
    from engine.bench.row import Row

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def bench(
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Only the README's first claims, in a few minutes; all takes about twenty."),
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
    from engine.bench.claims import both
    from engine.bench.row import as_json, as_table

    with tempfile.TemporaryDirectory() as fresh:
        sides = both(Path(fresh))
    if plot:
        return _plot(sides, plot)
    rows = list(_rows(sides, quick))
    typer.echo(as_json(rows) if json else as_table(rows))


def _rows(sides: Sides, quick: bool) -> Iterator[Row]:
    from engine.bench.card import card_rows
    from engine.bench.claims import all_rows, quick_rows
    from engine.bench.day import day_rows
    from engine.bench.service import service_rows

    yield from quick_rows(sides, _say) if quick else all_rows(sides, _say)
    if not quick:
        _say("a busy server's day, simulated")
        yield from day_rows()
        yield from card_rows(_say)
    _say("the running program, measured from outside")
    yield from service_rows()


def _plot(sides: Sides, path: Path) -> None:
    from engine.bench import users
    from engine.bench.crowd import cast
    from engine.calibration import device_name

    load = replace(sides.load, steps=users.STEPS)
    found = users.measure(sides.family, cast(sides.pipeline, load.dtype), load, _say)
    users.plot(
        found, path, f"embedded model, {load.steps} steps of DDPM, {load.dtype}, {device_name(sides.family.device)}"
    )
    _say(f"{path}: {len(found)} numbers of users, both systems in {load.dtype}")


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)


def main(args: list[str] | None = None) -> int:
    return int(app(args, prog_name="darkroom bench", standalone_mode=False) or 0)


if __name__ == "__main__":
    raise SystemExit(main())
