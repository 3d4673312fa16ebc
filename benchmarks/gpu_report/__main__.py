"""The `darkroom gpu-report` command: one JSON and one Markdown file about this machine's GPU with our engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.models.__main__ import MODEL_NAMES, default_cache_folder, measure_models, parse_names
from benchmarks.report.figure_row import FAILED, FigureRow, print_progress

if TYPE_CHECKING:
    import torch

    from benchmarks.gpu_report.speedups import LoadFamily
    from engine.models.families.diffusers_family import DiffusersFamily
    from engine.process.memory_requests import Offload

REPORT_NAME = "darkroom-gpu-report"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def gpu_report(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the two files go.")] = Path(),
    models: Annotated[
        str,
        typer.Option(
            metavar="NAMES", help="Real sizes to measure: some of sd15, sdxl and flux, with commas; all by default."
        ),
    ] = "",
    cache: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where they are built and kept; by default the data folder.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Real sizes on a processor, too, which takes about 40 minutes.")
    ] = False,
) -> None:
    """Report device and driver, parity of every kind and quantisation, batch gain, graphs, offload, and real sizes.

    Writes darkroom-gpu-report.json and .md, to attach to an issue; they name no person, folder or network address.
    Without a GPU it measures the processor and says so, without real sizes, in about two minutes.
    """
    from engine.device.memory import choose_device

    names = parse_names(models, MODEL_NAMES)
    device = choose_device()
    if device.type != "cuda":
        if models and not full:
            raise typer.BadParameter("On a processor, real sizes need --full.")
        print_progress("There is no GPU here: this measures the processor.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"The report cannot be written to {out}: {error.strerror}.") from error
    with_real_models = full or device.type == "cuda"
    facts, sections = measure_report(device, names, cache or default_cache_folder(), with_real_models=with_real_models)
    for ending, text in (("json", format_json(facts, sections)), ("md", format_markdown(facts, sections))):
        path = out / f"{REPORT_NAME}.{ending}"
        path.write_text(text, encoding="utf-8")
        typer.echo(str(path))


def measure_report(
    device: torch.device, names: tuple[str, ...], cache_folder: Path, *, with_real_models: bool
) -> tuple[dict[str, object], dict[str, list[FigureRow]]]:
    from benchmarks.gpu_report.device_facts import describe_device
    from benchmarks.gpu_report.parity import (
        measure_control_rows,
        measure_parity_rows,
        measure_picture_rows,
        measure_quantization_rows,
    )
    from benchmarks.gpu_report.speedups import measure_speedup_rows

    facts = describe_device(device)
    facts = describe_device(device)
    sections = {
        "Parity with the unmodified pipelines": measure_parity_rows(device),
        "Parity with pictures beside the prompt": [*measure_control_rows(device), *measure_picture_rows(device)],
        "Weights in fewer bits": measure_quantization_rows(device),
        "Ways of running a network": measure_speedup_rows(_make_family_loader(device, cache_folder)),
    }
    if with_real_models:
        model_rows = measure_models(names, cache_folder, steps=None, is_tiny=False)
        sections["Real sizes beside diffusers, random weights"] = list(model_rows)
    return facts, sections


def _make_family_loader(device: torch.device, cache_folder: Path) -> LoadFamily:
    """Return the loader of the network to time: Stable Diffusion 1.5 on a GPU, the embedded model on a processor."""

    def load_family(offload: Offload = "none") -> DiffusersFamily:
        from benchmarks.models.model_configs import build_sd15
        from benchmarks.models.random_weights import ensure_model_folder
        from engine import models
        from engine.models.families.diffusers_family import DiffusersFamily

        if device.type == "cuda":
            folder = ensure_model_folder(cache_folder / "real-512" / "sd15", build_sd15)
            family = models.load_model(str(folder), cache_folder, device=device, offload=offload)
        else:
            family = models.load_model("embedded", cache_folder, device=device)
        assert isinstance(family, DiffusersFamily)
        return family

    return load_family


def main(argv: list[str] | None = None) -> int:
    return int(app(argv, prog_name="darkroom gpu-report", standalone_mode=False) or 0)


if __name__ == "__main__":
    raise SystemExit(main())


ReportSections = Mapping[str, Sequence[FigureRow]]


def format_json(facts: Mapping[str, Any], sections: ReportSections) -> str:
    rows = {title: [row.to_dict() for row in section_rows] for title, section_rows in sections.items()}
    return json.dumps({"device": dict(facts), "sections": rows}, indent=1, ensure_ascii=False)


def format_markdown(facts: Mapping[str, Any], sections: ReportSections) -> str:
    lines = [f"# Darkroom on {facts['device']}", ""]
    if facts["kind"] != "cuda":
        lines += ["There is no GPU here: all figures are of the processor.", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {_format_cell(name)} | {_format_cell(value)} |" for name, value in facts.items()]
    for title, rows in sections.items():
        lines += ["", f"## {title}", "", "| | what | figure | goal | note |", "|---|---|---|---|---|"]
        lines += [_format_row(row) for row in rows]
    return "\n".join(lines) + "\n"


def _format_row(row: FigureRow) -> str:
    missing_mark = "**failed**" if row.goal or row.note.startswith(FAILED) else "–"
    mark = missing_mark if row.figure is None else "ok" if row.meets_goal else "**miss**"
    return f"| {mark} | {_format_cell(row.name)} | {row.figure_text} | {row.goal or ''} | {_format_cell(row.remark)} |"


def _format_cell(value: object) -> str:
    return "–" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
