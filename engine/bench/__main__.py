"""`darkroom bench [--quick] [--json]`: rows of figure and goal on the standard output, progress on the error output."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def bench(
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="The README's claims, in some minutes; what it measures in any case.", show_default=False
        ),
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print a list of rows as JSON.")] = False,
) -> None:
    """Measure this machine side by side with diffusers, in one run. Let nothing else run meanwhile.

    Rows that miss their goal say MISS (JSON: pass false); the exit code stays 0. `bench discord` measures the bot.
    """
    from engine.bench.quick import quick_rows
    from engine.bench.row import as_json, as_table
    from engine.bench.service import service_rows

    del quick  # there is one set of rows so far
    with tempfile.TemporaryDirectory() as fresh:
        rows = quick_rows(Path(fresh), _say)
    _say("the whole program, from outside")
    rows += service_rows()
    typer.echo(as_json(rows) if json else as_table(rows))


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)


def main(args: list[str] | None = None) -> int:
    return int(app(args, prog_name="darkroom bench", standalone_mode=False) or 0)


if __name__ == "__main__":
    raise SystemExit(main())
