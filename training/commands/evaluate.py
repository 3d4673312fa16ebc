"""The `darkroom train evaluate` command: measures a model's quality as rows of figure and goal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from training.commands.options import Cache, Threads
from training.commands.progress import print_status, show_progress

if TYPE_CHECKING:
    from training.evaluation.context import EvaluationContext
    from training.evaluation.picture_sampler import PictureSampler

ModelName = Annotated[
    str, typer.Option("--from", metavar="MODEL", help="The model to evaluate: embedded, or a folder.")
]
JudgeFolder = Annotated[
    Path | None, typer.Option("--judge", metavar="FOLDER", help="Another judge than the built-in one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a list of rows as JSON.")]
Quick = Annotated[bool, typer.Option("--quick", help="Draw a sample: a tenth of the time.")]
OnlyChecks = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CHECK",
        help="Only this check, of reconstruction, backgrounds, hues, labels, words, lemmas, realism, seeds, memories, "
        "guidance, speed, enlarging and sizes; may be given several times.",
    ),
]
SheetFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw 64 prompts into this WebP instead of measuring.")
]
PromptKind = Annotated[
    Literal["mixed", "labels", "lemmas", "sentences"] | None,
    typer.Option(
        "--prompts", help="What --sheet draws: labels in many forms (mixed), alone; held-out nouns; sentences."
    ),
]
Style = Annotated[
    Literal["3d render", "soft shading", "flat design"] | None,
    typer.Option(help="Prompts of labels name this style: in the checks labels, realism and memories."),
]
MissedFile = Annotated[
    Path | None,
    typer.Option(
        "--missed", metavar="FILE", help="Write the labels that the judge takes for something else: for --focus."
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of labels, renderings and the sheet.")]

SHEET_STEPS = 50
STYLED_CHECKS = frozenset({"labels", "realism", "memories"})  # they share one picture for each label


def evaluate(
    source: ModelName = "embedded",
    judge: JudgeFolder = None,
    cache: Cache = None,
    threads: Threads = None,
    only: OnlyChecks = None,
    quick: Quick = False,
    json: AsJson = False,
    sheet: SheetFile = None,
    prompts: PromptKind = None,
    style: Style = None,
    missed: MissedFile = None,
    seed: Seed = 0,
) -> None:
    """Measure the model with a judge: a classifier that was trained on the real pictures only.

    Rows that miss their goal say MISS (JSON: pass false); the exit code stays 0. Timings mean something only while
    nothing else runs.
    """
    import torch

    from benchmarks.report.figure_row import format_json, format_table
    from engine.process.model_words import WEIGHTS_FOLDER
    from training.commands import builtin_artwork
    from training.evaluation.checks import run_checks as rows_of
    from training.evaluation.context import QUICK_SIZES, SampleSizes
    from training.evaluation.context_loader import open_context

    _check_sheet(sheet, prompts)
    _check_labels_drawn(missed, style, sheet, only or ["labels"])
    if threads:
        torch.set_num_threads(threads)
    weights_folder = builtin_artwork.find_weights(source)
    judge_folder = judge or WEIGHTS_FOLDER / "judge"
    if sheet:
        return _draw_sheet(weights_folder, choose_prompts(prompts or "mixed", judge_folder, cache, seed), sheet, seed)
    with show_progress("drawing") as report_progress:
        context = open_context(
            weights_folder,
            judge_folder,
            lambda: builtin_artwork.load_drawings(cache),
            lambda: builtin_artwork.load_held_out_lemmas(cache),
            QUICK_SIZES if quick else SampleSizes(),
            seed,
            style or "",
            lambda finished, total: report_progress(finished / total, f"{finished} of {total} steps"),
        )
        rows = rows_of(context, only or [], print_status)
    typer.echo(format_json(rows) if json else format_table(rows))
    if missed:
        write_missed(context, missed)


def _check_sheet(sheet: Path | None, prompts: str | None) -> None:
    """Raise ValueError for prompts without a sheet, or for a sheet in another format, before anything is drawn."""
    from training.evaluation.prompt_sheet import check_file_name

    if prompts and not sheet:
        raise ValueError("--prompts says what --sheet draws: name a file with --sheet, too.")
    if sheet:
        check_file_name(sheet)


def _check_labels_drawn(missed: Path | None, style: str | None, sheet: Path | None, checks: list[str]) -> None:
    """Raise ValueError for an option without effect, or a file that cannot be written, before anything is drawn."""
    if missed and (sheet or "labels" not in checks):
        raise ValueError("--missed needs the check of labels: leave out --sheet, and name labels with --only.")
    if style and (sheet or STYLED_CHECKS.isdisjoint(checks)):
        raise ValueError("--style needs a check that draws labels: leave out --sheet, and name labels with --only.")
    if missed and (missed.is_dir() or not missed.parent.is_dir()):
        raise ValueError(f"{missed} cannot be written: it is a folder, or its folder is not there.")


def write_missed(context: EvaluationContext, path: Path) -> None:
    """Write the missed labels with their picture's style, if there is such a drawing; without a style, the main one."""
    from training.commands.focus import write_focus
    from training.pictures.variants import MAIN_STYLE, FocusedDrawing

    drawings = {FocusedDrawing(drawing.description.label, drawing.style) for drawing in context.artwork}
    missed = [FocusedDrawing(label, style or MAIN_STYLE) for label, style in context.label_sample().list_missed()]
    known = [drawing for drawing in missed if drawing in drawings]
    write_focus(path, known)
    print_status(f"{path}: {len(known)} of {len(missed)} missed labels; the others have no drawing in their style.")


def choose_prompts(kind: str, judge_folder: Path, cache: Path | None, seed: int) -> list[str]:
    """Choose the prompts of a sheet: "mixed", "labels", "lemmas" or "sentences". Raises ValueError without WordNet."""
    from engine.models.judge import read_labels
    from training.commands import builtin_artwork
    from training.evaluation import prompt_sheet
    from training.evaluation.free_sentences import FREE_SENTENCES

    if kind == "sentences":
        return list(FREE_SENTENCES)
    if kind == "lemmas":
        return prompt_sheet.choose_words(builtin_artwork.load_held_out_lemmas(cache), seed)
    labels = read_labels(judge_folder)
    if kind == "labels":
        return prompt_sheet.choose_words(labels, seed)
    return prompt_sheet.choose_mixed_prompts(labels, seed)


def _draw_sheet(weights_folder: Path, prompts: list[str], path: Path, seed: int) -> None:
    from dataclasses import replace

    from training.evaluation import prompt_sheet
    from training.evaluation.context_loader import load_sampler

    sampler: PictureSampler = load_sampler(weights_folder)
    with show_progress("drawing") as report_progress:

        def report_steps(finished: int, total: int) -> None:
            report_progress(finished / total, f"{finished} of {total} steps")

        sampler = replace(sampler, steps=SHEET_STEPS, on_progress=report_steps)
        latents = sampler.sample_latents(prompts, [seed] * len(prompts))
    pictures = [sampler.family.finish(picture_latents) for picture_latents in latents]
    prompt_sheet.write_sheet(prompt_sheet.draw_sheet(pictures, prompts), path)
    print_status(f"{path}: {len(prompts)} prompts, seed {seed}, {SHEET_STEPS} steps.")
