"""The `darkroom lab` command line. It opens the model and the pictures and runs one experiment.

Imports that take time are inside the commands.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from training.lab.context_loader import DEFAULT_WORDS, clean_prompt, open_context

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
DEFAULT_OUT = Path("out/lab")
DEFAULT_SEED = 7
DEFAULT_STEPS = 40
DEFAULT_MODEL = "embedded"


@app.callback()
def lab() -> None:
    """Experiments with words, noise and the latent space. Pictures go to out/lab, or where --out says."""


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
        match_list = [{"word": word, "cosine": round(cosine, 4)} for word, cosine in matches]
        typer.echo(
            json.dumps({"sum": format_sum(terms), "of": len(vocabulary), "nearest": match_list}, ensure_ascii=False)
        )
        return
    typer.echo(f"{format_sum(terms)}, nearest of {len(vocabulary):,} words:")
    for word, cosine in matches:
        typer.echo(f"  {cosine:.3f}  {word}")


@app.command()
def mix(
    sum_: WordSum,
    count: Annotated[int, typer.Option(min=1, max=8, help="Number of seeds.")] = 3,
    stairs: Annotated[bool, typer.Option("--stairs", help="The last term grows from 0 to its weight.")] = False,
    out: Out = DEFAULT_OUT,
    seed: Seed = DEFAULT_SEED,
    steps: Steps = DEFAULT_STEPS,
    guidance: Guidance = None,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Draw a sum of words: mixed in embedding space, and as composable rows."""
    from training.lab import output, word_arithmetic
    from training.lab.word_sums import parse_sum

    terms = parse_sum(sum_)
    output.ensure_folder(out)
    with open_context(model, steps, guidance, seed) as context:
        result = (
            word_arithmetic.draw_weight_steps(context, terms)
            if stairs
            else word_arithmetic.draw_mix(context, terms, count)
        )
    output.write_result(result, out, as_json=as_json)


@app.command()
def walk(
    start: Annotated[str, typer.Argument(metavar="FROM", help="A prompt.")],
    end: Annotated[str, typer.Argument(metavar="TO", help="Another.")],
    frames: Annotated[int, typer.Option(min=2, max=120)] = 12,
    seeds: Annotated[tuple[int, int] | None, typer.Option(help="Two seeds: the noise is interpolated, too.")] = None,
    out: Out = DEFAULT_OUT,
    seed: Seed = DEFAULT_SEED,
    steps: Steps = DEFAULT_STEPS,
    guidance: Guidance = None,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Interpolate from one prompt to another in equal steps, as a contact sheet and as a film."""
    from training.lab import interpolation as walking
    from training.lab import output

    output.ensure_folder(out)
    with open_context(model, steps, guidance, seed) as context:
        result = walking.interpolate_prompts(context, clean_prompt(start), clean_prompt(end), frames, seeds)
    output.write_result(result, out, as_json=as_json)


@app.command()
def roundtrip(
    picture: PictureFile, out: Out = DEFAULT_OUT, model: Model = DEFAULT_MODEL, as_json: AsJson = False
) -> None:
    """Send a picture through the autoencoder and back."""
    from training.lab import autoencoder, output, pictures

    original = pictures.open_picture(picture)
    output.ensure_folder(out)
    with open_context(model, DEFAULT_STEPS, None, DEFAULT_SEED) as context:
        result = autoencoder.show_round_trip(context, original)
    output.write_result(result, out, as_json=as_json)


@app.command()
def blend(
    a: PictureFile,
    b: PictureFile,
    share: Annotated[float, typer.Option(min=0, max=1, help="Share of the second picture.")] = 0.5,
    strength: Annotated[float, typer.Option(min=0, max=1, help="How much noise is added before denoising.")] = 0.4,
    words: Prompt = "",
    out: Out = DEFAULT_OUT,
    seed: Seed = DEFAULT_SEED,
    steps: Steps = DEFAULT_STEPS,
    guidance: Guidance = None,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Mix two pictures: as pixels, as latents, and through the network."""
    from training.lab import autoencoder, output, pictures

    first = pictures.open_picture(a)
    second = pictures.open_picture(b)
    output.ensure_folder(out)
    with open_context(model, steps, guidance, seed) as context:
        result = autoencoder.blend_pictures(
            context, first, second, share=share, strength=strength, prompt=clean_prompt(words)
        )
    output.write_result(result, out, as_json=as_json)


@app.command()
def forward(
    picture: PictureFile,
    words: Prompt = "",
    out: Out = DEFAULT_OUT,
    seed: Seed = DEFAULT_SEED,
    guidance: Guidance = None,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Show a picture at eight levels of noise, and the network's estimate of x0 at each."""
    from training.lab import forward_process as noising
    from training.lab import output, pictures

    original = pictures.open_picture(picture)
    output.ensure_folder(out)
    with open_context(model, DEFAULT_STEPS, guidance, seed) as context:
        result = noising.show_forward_process(context, original, clean_prompt(words))
    output.write_result(result, out, as_json=as_json)


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
    from engine.contract.rejection import JobRejected
    from engine.process.setting_sources import SettingError

    try:
        arguments = sys.argv[1:] if args is None else args
        return int(app(arguments or ["--help"], prog_name="darkroom lab", standalone_mode=False) or 0)
    except (JobRejected, SettingError) as error:
        typer.echo(f"darkroom: {error}", err=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
