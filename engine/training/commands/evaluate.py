"""The `darkroom train evaluate` command: measures a model's quality as rows of figure and goal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.training.commands.options import Cache, Threads
from engine.training.commands.progress import say, shown

if TYPE_CHECKING:
    from engine.training.evaluate.draw import Painter

Model = Annotated[str, typer.Option("--from", metavar="MODEL", help="The model to evaluate: embedded, or a folder.")]
JudgeFolder = Annotated[
    Path | None, typer.Option("--judge", metavar="FOLDER", help="Another judge than the built-in one.")
]
Json = Annotated[bool, typer.Option("--json", help="Print a list of rows as JSON.")]
Quick = Annotated[bool, typer.Option("--quick", help="Draw a sample: a tenth of the time.")]
Only = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CHECK",
        help="Only this check, of reconstruction, backgrounds, hues, labels, words, seeds, memories, guidance, speed, "
        "enlarging and sizes; may be given several times.",
    ),
]
Sheet = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw 64 prompts into this WebP or PNG instead of measuring.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of labels, renderings and the sheet.")]

SHEET_STEPS = 50


def evaluate(
    source: Model = "embedded",
    judge: JudgeFolder = None,
    cache: Cache = None,
    threads: Threads = None,
    only: Only = None,
    quick: Quick = False,
    json: Json = False,
    sheet: Sheet = None,
    seed: Seed = 0,
) -> None:
    """Measure the model with a judge: a classifier that was trained on the real pictures only.

    Rows that miss their goal say MISS (JSON: pass false); the exit code stays 0. Timings mean something only while
    nothing else runs.
    """
    import torch

    from engine.bench.row import as_json, as_table
    from engine.families.embedded import WEIGHTS
    from engine.training.commands import builtin
    from engine.training.evaluate.evaluation import evaluate as rows_of
    from engine.training.evaluate.opening import open_scene
    from engine.training.evaluate.scene import QUICK, Sizes

    if threads:
        torch.set_num_threads(threads)
    weights, judges = builtin.weights_of(source), judge or WEIGHTS / "judge"
    if sheet:
        return _sheet(weights, judges, sheet, seed)
    with shown("drawing") as tell:
        scene = open_scene(
            weights, judges, lambda: builtin.drawings(cache), QUICK if quick else Sizes(), seed,
            lambda done, of: tell(done / of, f"{done} of {of} steps"),
        )  # fmt: skip
        rows = rows_of(scene, only or [], say)
    typer.echo(as_json(rows) if json else as_table(rows))


def _sheet(weights: Path, judges: Path, path: Path, seed: int) -> None:
    from dataclasses import replace

    from engine.training.evaluate import sheet
    from engine.training.evaluate.judge import labels_in
    from engine.training.evaluate.opening import painter

    prompts = sheet.prompts(labels_in(judges), seed)
    drawing: Painter = painter(weights)
    with shown("drawing") as tell:
        drawing = replace(drawing, steps=SHEET_STEPS, told=lambda done, of: tell(done / of, f"{done} of {of} steps"))
        latents = drawing.latents(prompts, [seed] * len(prompts))
    pictures = [drawing.family.finish(one) for one in latents]
    sheet.write(sheet.sheet(pictures, prompts), path)
    say(f"{path}: {len(prompts)} prompts, seed {seed}, {SHEET_STEPS} steps.")
