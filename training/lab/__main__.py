"""The `darkroom lab` command line. It opens the model and the pictures and runs one experiment.

Imports that take time are inside the commands.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.contract import JobRejected
from training.commands.options import give_signature

if TYPE_CHECKING:
    from engine.models.family import TokenConditioned
    from training.lab.context import ExperimentResult, LabContext

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)

WordSum = Annotated[str, typer.Argument(help='Such as "royalty + woman - 1.5*man"; put phrases with + or - in quotes.')]
PictureFile = Annotated[Path, typer.Argument(help="PNG, JPEG, WebP or GIF; the square in its middle is used.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 16, help="The same seed gives the same noise.")]
Steps = Annotated[int, typer.Option(min=1, max=1000, help="Steps of DDIM.")]
Guidance = Annotated[float | None, typer.Option(min=1, max=30, help="How closely to follow the prompt.")]
Model = Annotated[str, typer.Option(help="Model folder or name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on the standard output.")]
WordList = Annotated[Path, typer.Option("--words", metavar="FILE", help="A JSON list of words to choose from.")]
Prompt = Annotated[str, typer.Option("--words", help="The prompt; empty by default.")]
DEFAULT_WORDS = Path(__file__).parents[2] / "engine" / "weights" / "words.json"  # --help must not import torch
MAX_PROMPT_LENGTH = 2000  # of a prompt, as in the bot
DEFAULT_OUT = Path("out/lab")
DEFAULT_SEED = 7
DEFAULT_STEPS = 40
DEFAULT_MODEL = "embedded"
SHARED_OPTIONS = {
    name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    for name, default, annotation in (
        ("out", DEFAULT_OUT, Out),
        ("seed", DEFAULT_SEED, Seed),
        ("steps", DEFAULT_STEPS, Steps),
        ("guidance", None, Guidance),
        ("model", DEFAULT_MODEL, Model),
        ("as_json", False, AsJson),
    )
}
Draw = Callable[["LabContext"], "ExperimentResult"]


@app.callback()
def lab() -> None:
    """Experiments with words, noise and the latent space. Pictures go to out/lab, or where --out says."""


def _experiment(*option_names: str) -> Callable[[Callable[..., Draw]], Callable[..., None]]:
    """Add a command: `command` reads its own options and returns what draws the result, which is then written.

    It gets these options of `SHARED_OPTIONS`, and those of every experiment: --out, --model and --json.
    """

    def add_command(command: Callable[..., Draw]) -> Callable[..., None]:
        shared = [SHARED_OPTIONS[name] for name in ("out", *option_names, "model", "as_json")]

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            from training.lab.context import ensure_folder, write_result

            given = {name: arguments.pop(name, option.default) for name, option in SHARED_OPTIONS.items()}
            draw = command(**arguments)
            ensure_folder(given["out"])
            with open_context(given["model"], given["steps"], given["guidance"], given["seed"]) as context:
                result = draw(context)
            write_result(result, given["out"], as_json=given["as_json"])

        give_signature(run, [*inspect.signature(command, eval_str=True).parameters.values(), *shared])
        return app.command()(run)

    return add_command


@app.command()
def nearest(
    sum_: WordSum,
    words: WordList = DEFAULT_WORDS,
    top: Annotated[int, typer.Option(min=1, max=100)] = 10,
    as_json: AsJson = False,
) -> None:
    """List the words nearest to a sum of words."""
    from engine.models.text_embedder import Embedder
    from training.lab import vocabulary as search
    from training.lab.word_sums import format_sum, parse_sum

    terms = parse_sum(sum_)
    vocabulary = search.read_vocabulary(words)
    embed = Embedder()
    typer.echo(f"Reading {len(vocabulary):,} words …", err=True)
    matches = search.find_nearest_words(embed, terms, search.LabVocabulary.embed_words(embed, vocabulary), top)
    if as_json:
        matches_json = [{"word": word, "cosine": round(cosine, 4)} for word, cosine in matches]
        answer = {"sum": format_sum(terms), "of": len(vocabulary), "nearest": matches_json}
        typer.echo(json.dumps(answer, ensure_ascii=False))
        return
    typer.echo(f"{format_sum(terms)}, nearest of {len(vocabulary):,} words:")
    for word, cosine in matches:
        typer.echo(f"  {cosine:.3f}  {word}")


@_experiment("seed", "steps", "guidance")
def mix(
    sum_: WordSum,
    count: Annotated[int, typer.Option(min=1, max=8, help="Number of seeds.")] = 3,
    stairs: Annotated[bool, typer.Option("--stairs", help="The last term grows from 0 to its weight.")] = False,
) -> Draw:
    """Draw a sum of words: mixed in embedding space, and as composable rows."""
    from training.lab.experiments import draw_mix, draw_weight_steps
    from training.lab.word_sums import parse_sum

    terms = parse_sum(sum_)
    return lambda context: draw_weight_steps(context, terms) if stairs else draw_mix(context, terms, count)


@_experiment("seed", "steps", "guidance")
def walk(
    start: Annotated[str, typer.Argument(metavar="FROM", help="A prompt.")],
    end: Annotated[str, typer.Argument(metavar="TO", help="Another.")],
    frames: Annotated[int, typer.Option(min=2, max=120)] = 12,
    seeds: Annotated[tuple[int, int] | None, typer.Option(help="Two seeds: the noise is interpolated, too.")] = None,
) -> Draw:
    """Interpolate from one prompt to another in equal steps, as a contact sheet and as a film."""
    from training.lab.experiments import interpolate_prompts

    return lambda context: interpolate_prompts(context, clean_prompt(start), clean_prompt(end), frames, seeds)


@_experiment()
def roundtrip(picture: PictureFile) -> Draw:
    """Send a picture through the autoencoder and back."""
    from training.lab.experiments import open_picture, show_round_trip

    original = open_picture(picture)
    return lambda context: show_round_trip(context, original)


@_experiment("seed", "steps", "guidance")
def blend(
    a: PictureFile,
    b: PictureFile,
    share: Annotated[float, typer.Option(min=0, max=1, help="Share of the second picture.")] = 0.5,
    strength: Annotated[float, typer.Option(min=0, max=1, help="How much noise is added before denoising.")] = 0.4,
    words: Prompt = "",
) -> Draw:
    """Mix two pictures: as pixels, as latents, and through the network."""
    from training.lab.experiments import blend_pictures, open_picture

    first = open_picture(a)
    second = open_picture(b)
    prompt = clean_prompt(words)
    return lambda context: blend_pictures(context, first, second, share=share, strength=strength, prompt=prompt)


@_experiment("seed", "guidance")
def forward(picture: PictureFile, words: Prompt = "") -> Draw:
    """Show a picture at eight levels of noise, and the network's estimate of x0 at each."""
    from training.lab.experiments import open_picture, show_forward_process

    original = open_picture(picture)
    return lambda context: show_forward_process(context, original, clean_prompt(words))


@app.command()
def lesson(
    name: Annotated[str, typer.Option(help="Writes NAME.md, and its pictures into a folder NAME.")] = "lesson",
    words: WordList = DEFAULT_WORDS,
    out: Out = DEFAULT_OUT,
    seed: Seed = DEFAULT_SEED,
    steps: Steps = DEFAULT_STEPS,
    guidance: Guidance = None,
    model: Model = DEFAULT_MODEL,
) -> None:
    """Run all experiments with fixed prompts and pictures and write one page.

    `--out docs --name lab` renews docs/lab.md.
    """
    from engine.models.text_embedder import Embedder
    from training.lab import lesson as course
    from training.lab.vocabulary import read_vocabulary

    word_list = read_vocabulary(words)
    with open_context(model, steps, guidance, seed) as context:
        typer.echo(str(course.write_lesson(context, Embedder(), word_list, out, name)))


def main(args: list[str] | None = None) -> int:
    """Run a command line and return the exit code. A mistake of the user prints one sentence and returns 2."""
    from engine.contract import JobRejected
    from engine.process.setting_sources import SettingError

    try:
        arguments = sys.argv[1:] if args is None else args
        return int(app(arguments or ["--help"], prog_name="darkroom lab", standalone_mode=False) or 0)
    except (JobRejected, SettingError) as error:
        typer.echo(f"darkroom: {error}", err=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())


@contextmanager
def open_context(model: str, steps: int, guidance: float | None, seed: int) -> Generator[LabContext]:
    """Open a model with its settings; a bar counts the steps. Raises `JobRejected`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from training.lab.context import LabContext

    family = load_family(model)
    columns = (TextColumn("developing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress_bar:
        task = progress_bar.add_task("developing", total=None)
        scale = family.guidance if guidance is None else guidance

        def on_step(finished: int, total: int) -> None:
            progress_bar.update(task, completed=finished, total=total)

        yield LabContext(family, steps, scale, seed, on_step)


def load_family(model: str) -> TokenConditioned:
    """Load any model that the engine loads, or a training run's folder, which has no text encoder."""
    from engine.device.memory import choose_device
    from engine.models import load_model
    from engine.models.families.embedded import load_embedded
    from engine.models.families.stable_diffusion import StableDiffusion
    from engine.process.settings import load_settings
    from engine.upscaling.super_resolver import SuperResolver

    folder = Path(model)
    device = choose_device()
    settings = load_settings()
    resolver = SuperResolver.load(settings.upscaler, device)
    if (folder / "unet").is_dir() and (folder / "vae").is_dir() and not (folder / "text_encoder").exists():
        return load_embedded(device, folder, resolver)
    family = load_model(model, settings.data, device=device, resolver=resolver)
    if not isinstance(family, StableDiffusion) or family.guides != "rows":
        raise JobRejected(f"The lab takes Stable Diffusion 1.x and 2.x; {family.name} is something else.", "model")
    return family


def clean_prompt(prompt: str) -> str:
    """Return a prompt on one line. Raises `JobRejected` if it is too long."""
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise JobRejected(f"A prompt may have {MAX_PROMPT_LENGTH} characters; this one has {len(prompt)}.", "member")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in prompt).split())
