"""The `darkroom gpu-report` command: one JSON and one Markdown file about this machine's GPU with our engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.bench.models.__main__ import choose, default_cache, measure_models

if TYPE_CHECKING:
    import torch

    from engine.bench.row import Row
    from engine.families.pipelined import Pipelined

NAME = "darkroom-gpu-report"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def gpu_report(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the two files go.")] = Path(),
    models: Annotated[
        str, typer.Option(metavar="NAMES", help="Real sizes to measure: some of sd15, sdxl and flux, with commas.")
    ] = "",
    cache: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where they are built and kept; by default the data folder.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Real sizes on a processor, too, which takes about 40 minutes.")
    ] = False,
) -> None:
    """Report device and driver, parity of every kind of model, batch gain, graphs, compile, offload, and real sizes.

    Writes darkroom-gpu-report.json and .md, to attach to an issue; they name no person, folder or network address.
    Without a GPU it measures the processor and says so, without real sizes, in about two minutes.
    """
    from engine.bench.report.page import as_json, as_markdown
    from engine.device import best

    names, device = choose(models), best()
    if device.type != "cuda":
        _say("There is no GPU here: this measures the processor.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"The report cannot be written to {out}: {error.strerror}.") from error
    facts, sections = measure(device, names, cache or default_cache(), real=full or device.type == "cuda")
    for ending, text in (("json", as_json(facts, sections)), ("md", as_markdown(facts, sections))):
        path = out / f"{NAME}.{ending}"
        path.write_text(text, encoding="utf-8")
        typer.echo(str(path))


def measure(
    device: torch.device, names: tuple[str, ...], cache: Path, *, real: bool
) -> tuple[dict[str, object], dict[str, list[Row]]]:
    from engine.bench.report.device import describe_device
    from engine.bench.report.gains import gain_rows
    from engine.bench.report.parity import parity_rows

    facts = describe_device(device)
    sections = {
        "Parity with the unmodified pipelines": parity_rows(device, _say),
        "Ways of running a network": gain_rows(_loader(device, cache), _say),
    }
    if real:
        found = measure_models(names, cache, steps=None, tiny=False)
        sections["Real sizes beside diffusers, random weights"] = list(found)
    return facts, sections


def _loader(device: torch.device, cache: Path) -> Callable[[], Pipelined]:
    """Return the loader of the network to time: Stable Diffusion 1.5 on a GPU, the embedded model on a processor."""

    def load() -> Pipelined:
        from engine import families
        from engine.bench.models.folder import provide_folder
        from engine.bench.models.sizes import sd15
        from engine.families.pipelined import Pipelined

        if device.type == "cuda":
            family = families.load_folder(str(provide_folder(cache / "real-512" / "sd15", sd15)), "sd15", device)
        else:
            family = families.load("embedded", cache, device=device)
        assert isinstance(family, Pipelined)
        return family

    return load


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)


def main(args: list[str] | None = None) -> int:
    return int(app(args, prog_name="darkroom gpu-report", standalone_mode=False) or 0)


if __name__ == "__main__":
    raise SystemExit(main())
