"""The commands `darkroom train evaluate`, `measure` and `export`: a model's quality as rows; a run's network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from training.commands.options import Cache, Threads
from training.commands.progress import print_status, show_counts

if TYPE_CHECKING:
    from training.evaluation.context import EvaluationContext, PictureSampler

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
    from engine.process.model_settings import WEIGHTS_FOLDER
    from training.commands import builtin_artwork
    from training.evaluation.checks import run_checks
    from training.evaluation.context import QUICK_SIZES, EvaluationContext, SampleSizes, make_loaders

    _check_sheet(sheet, prompts)
    _check_labels_drawn(missed, style, sheet, only or ["labels"])
    if threads:
        torch.set_num_threads(threads)
    weights_folder = builtin_artwork.find_weights(source)
    judge_folder = judge or WEIGHTS_FOLDER / "judge"
    if sheet:
        return _draw_sheet(weights_folder, choose_prompts(prompts or "mixed", judge_folder, cache, seed), sheet, seed)
    with show_counts("drawing", "steps") as on_progress:
        loaders = make_loaders(
            weights_folder,
            judge_folder,
            lambda: builtin_artwork.load_drawings(cache),
            lambda: builtin_artwork.load_held_out_lemmas(cache),
            on_progress,
        )
        sizes = QUICK_SIZES if quick else SampleSizes()
        context = EvaluationContext(weights_folder, loaders, sizes, seed, style or "")
        rows = run_checks(context, only or [], print_status)
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
    from training.commands.builtin_artwork import write_focus
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
    from training.evaluation.prompt_sheet import FREE_SENTENCES, choose_mixed_prompts, choose_words

    if kind == "sentences":
        return list(FREE_SENTENCES)
    if kind == "lemmas":
        return choose_words(builtin_artwork.load_held_out_lemmas(cache), seed)
    labels = read_labels(judge_folder)
    if kind == "labels":
        return choose_words(labels, seed)
    return choose_mixed_prompts(labels, seed)


def _draw_sheet(weights_folder: Path, prompts: list[str], path: Path, seed: int) -> None:
    from dataclasses import replace

    from training.evaluation.context import load_sampler
    from training.evaluation.prompt_sheet import draw_sheet, write_sheet

    sampler: PictureSampler = load_sampler(weights_folder)
    with show_counts("drawing", "steps") as on_progress:
        sampler = replace(sampler, steps=SHEET_STEPS, on_progress=on_progress)
        latents = sampler.sample_latents(prompts, [seed] * len(prompts))
    pictures = [sampler.family.finish(picture_latents) for picture_latents in latents]
    write_sheet(draw_sheet(pictures, prompts), path)
    print_status(f"{path}: {len(prompts)} prompts, seed {seed}, {SHEET_STEPS} steps.")


PartsModel = Annotated[
    str, typer.Option("--from", metavar="MODEL", help="The model of its other parts: embedded, or a diffusers folder.")
]


def measure(
    network: Annotated[Path, typer.Argument(help="A folder with a network's config.json and weights.")],
    source: PartsModel = "embedded",
    cache: Cache = None,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the fixed prompts there.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1)] = 0,
) -> None:
    """Print a network's v-MSE on the held-out variants; draw its sheet of the fixed prompts."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from engine.models.library_logging import silence_libraries
    from training.commands import builtin_artwork
    from training.diffusion.diffusion_trainer import DiffusionEvaluator, DiffusionSettings, DiffusionTrainer
    from training.diffusion.sampling import SHEET_PROMPTS, measure_v_mse

    weights = builtin_artwork.find_weights(source)
    with silence_libraries():
        vae, caption_encoder = builtin_artwork.load_encoders(weights)
    _, validation_cache = builtin_artwork.open_variants(cache, (vae, caption_encoder), seed)
    scheduler = builtin_artwork.load_schedule(weights)
    if not (network / "config.json").is_file():
        raise ValueError(f"{network} is not a diffusers network: it has no config.json.")
    with silence_libraries():
        loaded_network = UNet2DConditionModel.from_pretrained(
            network, torch_dtype=torch.float32, use_safetensors=True
        ).eval()
    error = measure_v_mse(loaded_network, validation_cache, scheduler.alphas_cumprod)
    typer.echo(json.dumps({"network": network.name, "v_mse": round(error, 4)}))
    if sheet:
        trainer = DiffusionTrainer(loaded_network, validation_cache, scheduler.alphas_cumprod, DiffusionSettings())
        DiffusionEvaluator(trainer, validation_cache, caption_encoder(SHEET_PROMPTS), vae, scheduler).draw_sheet(sheet)


def export(
    run: Annotated[Path, typer.Argument(help="The folder that was --out of a run.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where the network goes.")],
    source: PartsModel = "embedded",
    raw: Annotated[bool, typer.Option("--raw", help="The network itself instead of its moving average.")] = False,
) -> None:
    """Write a run's averaged network in fp16, sharded, in the diffusers layout; the run may still be going on."""
    from engine.models.library_logging import silence_libraries
    from training.commands import builtin_artwork
    from training.core import checkpoint
    from training.core.run import CHECKPOINT_FILE
    from training.diffusion.diffusion_trainer import load_network

    checkpoint_path = next(filter(Path.is_file, (run / "run" / CHECKPOINT_FILE, run / CHECKPOINT_FILE)), None)
    if checkpoint_path is None:
        raise ValueError(f"{run} holds no run: it has no checkpoint.")
    with silence_libraries():
        network = load_network(builtin_artwork.find_weights(source) / "unet")
    checkpoint.read_position(checkpoint_path)  # raises if it is incomplete
    tensors, _ = checkpoint.load(checkpoint_path)
    prefix = "network." if raw else "network:average."
    chosen = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    try:
        network.load_state_dict(chosen)
    except RuntimeError as error:
        raise ValueError(f"{run} holds no run of `darkroom train diffusion` from {source}.") from error
    with checkpoint.translate_write_errors(to):
        checkpoint.export_network(network, to)
    checkpoint.make_readable(to)
