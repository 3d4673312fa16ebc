"""Measures what models of every family take in memory, one after another in one process.

python -m benchmarks.models.family_memory RUN_SPEC.json

Prints one line of JSON for each: predicted bytes, and measured MB after a picture.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.fixtures.wide_pipelines import NETWORK_FIELDS, build_medium_pipeline
from benchmarks.models.diffusers_run import print_output_line
from benchmarks.models.memory_run import draw_latents, make_run_recipe, read_settled_memory
from benchmarks.models.processes import run_and_collect
from benchmarks.models.random_weights import ensure_model_folder
from benchmarks.report.figure_row import FAILED, FigureRow, describe_error, print_progress
from engine import models
from engine.device.memory import choose_device
from engine.models.family import HasFormats
from engine.models.files.model_source import find_model
from engine.models.loading.memory_estimate import estimate_bytes
from engine.models.loading.pipeline_loader import FormatChooser

GOAL = "0.9 to 1.1"
# of the picture that is drawn first: some weights are read from the files only then
SIDE = 64
STEPS = 2


def measure_family_rows(kinds: Sequence[str] = ()) -> Iterator[FigureRow]:
    """Yield a row for each kind of pipeline; for all kinds if none is named."""
    names = tuple(kinds) or tuple(NETWORK_FIELDS)
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as temp_folder:
        for kind in names:
            print_progress(f"{kind}: building a network of some hundred megabytes")
            ensure_model_folder(Path(temp_folder) / kind, lambda kind=kind: build_medium_pipeline(kind))
        spec = Path(temp_folder) / "spec.json"
        log = Path(temp_folder) / "log"
        spec.write_text(json.dumps({"folder": temp_folder, "kinds": names}))
        print_progress("memory of every family")
        try:
            lines = run_and_collect([sys.executable, "-m", "benchmarks.models.family_memory", str(spec)], log)
        except RuntimeError as error:
            note = f"{FAILED}: {describe_error(error)}"
            yield FigureRow("every family: memory, predicted ÷ measured", None, GOAL, "×", note)
            return
        yield from (_make_row(line.values) for line in lines)


def _make_row(line: dict[str, Any]) -> FigureRow:
    predicted_mb = line["predicted"] / 2**20
    note = f"{predicted_mb:.4g} MB predicted, {line['measured_mb']:.4g} MB measured, {line['dtype']}"
    ratio = predicted_mb / line["measured_mb"]
    return FigureRow(f"{line['kind']}: memory, predicted ÷ measured", ratio, GOAL, "×", note)


def main(run_spec: dict[str, Any]) -> None:
    device = choose_device()
    chooser = FormatChooser(device, large_threshold=1_000_000)
    folder = Path(run_spec["folder"])
    predicted = {kind: estimate_bytes(find_model(str(folder / kind), folder), chooser) for kind in run_spec["kinds"]}
    _measure_family(folder, next(iter(predicted)), device)  # what the libraries take at their first use is no weights
    for kind in predicted:
        print_output_line(kind=kind, predicted=predicted[kind], **_measure_family(folder, kind, device))


def _measure_family(folder: Path, kind: str, device: torch.device) -> dict[str, Any]:
    """Return MB and number format of one family, of the GPU if there is one."""
    key = "gpu" if device.type == "cuda" else "rest"
    before = read_settled_memory()[key]
    family = models.load_model(str(folder / kind), folder, device=device, large_threshold=1_000_000)
    dtype = family.dtypes[0] if isinstance(family, HasFormats) else "float32"
    side = max(SIDE, family.multiple)
    run_spec = {"prompt": "a cat", "sampler": None, "steps": STEPS, "guidance": 4.0, "side": side}
    recipe = make_run_recipe(run_spec, family, dtype)
    family.finish(draw_latents(family, recipe)[0])
    return {"measured_mb": read_settled_memory()[key] - before, "dtype": dtype}


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(json.loads(Path(sys.argv[1]).read_text()))
