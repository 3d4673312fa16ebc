"""The `darkroom lab` command line. It opens the model and the pictures and runs one experiment.

Imports that take time are inside the commands.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from engine.lab.opening import WORDS, asked, room

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)

Sum = Annotated[str, typer.Argument(help='Such as "royalty + woman - 1.5*man"; put phrases with + or - in quotes.')]
Picture = Annotated[Path, typer.Argument(help="PNG, JPEG, WebP or GIF; the square in its middle is used.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 16, help="The same seed gives the same noise.")]
Steps = Annotated[int, typer.Option(min=1, max=1000, help="Steps of DDIM.")]
Guidance = Annotated[float | None, typer.Option(min=1, max=30, help="How closely to follow the prompt.")]
Model = Annotated[str, typer.Option(help="Model folder or name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on the standard output.")]
WordList = Annotated[Path, typer.Option("--words", metavar="FILE", help="A JSON list of words to choose from.")]
Told = Annotated[str, typer.Option("--words", help="The prompt; empty by default.")]
OUT, SEED, STEPS, EMBEDDED = Path("out/lab"), 7, 40, "embedded"


@app.callback()
def lab() -> None:
    """Experiments with words, noise and the latent space. Pictures go to out/lab, or where --out says."""


@app.command()
def nearest(
    sum_: Sum, words: WordList = WORDS, top: Annotated[int, typer.Option(min=1, max=100)] = 10, as_json: AsJson = False
) -> None:
    """List the words nearest to a sum of words."""
    from engine.lab import nearest as search
    from engine.lab.sums import read, written
    from engine.worker.embedding import Embedder

    terms, vocabulary, embed = read(sum_), search.vocabulary(words), Embedder()
    typer.echo(f"Reading {len(vocabulary):,} words …", err=True)
    found = search.nearest(embed, terms, search.Known.of(embed, vocabulary), top)
    if as_json:
        listed = [{"word": word, "cosine": round(cosine, 4)} for word, cosine in found]
        typer.echo(json.dumps({"sum": written(terms), "of": len(vocabulary), "nearest": listed}, ensure_ascii=False))
        return
    typer.echo(f"{written(terms)}, nearest of {len(vocabulary):,} words:")
    for word, cosine in found:
        typer.echo(f"  {cosine:.3f}  {word}")


@app.command()
def mix(
    sum_: Sum,
    count: Annotated[int, typer.Option(min=1, max=8, help="Number of seeds.")] = 3,
    stairs: Annotated[bool, typer.Option("--stairs", help="The last term grows from 0 to its weight.")] = False,
    out: Out = OUT, seed: Seed = SEED, steps: Steps = STEPS, guidance: Guidance = None, model: Model = EMBEDDED,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Draw a sum of words: mixed in embedding space, and as composable rows."""
    from engine.lab import arithmetic, showing
    from engine.lab.sums import read

    terms = read(sum_)
    showing.folder(out)
    with room(model, steps, guidance, seed) as opened:
        shown = arithmetic.stairs(opened, terms) if stairs else arithmetic.mix(opened, terms, count)
    showing.keep(shown, out, as_json=as_json)


@app.command()
def walk(
    start: Annotated[str, typer.Argument(metavar="FROM", help="A prompt.")],
    end: Annotated[str, typer.Argument(metavar="TO", help="Another.")],
    frames: Annotated[int, typer.Option(min=2, max=120)] = 12,
    seeds: Annotated[tuple[int, int] | None, typer.Option(help="Two seeds: the noise is interpolated, too.")] = None,
    out: Out = OUT, seed: Seed = SEED, steps: Steps = STEPS, guidance: Guidance = None, model: Model = EMBEDDED,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Interpolate from one prompt to another in equal steps, as a contact sheet and as a film."""
    from engine.lab import showing
    from engine.lab import walk as walking

    showing.folder(out)
    with room(model, steps, guidance, seed) as opened:
        shown = walking.walk(opened, asked(start), asked(end), frames, seeds)
    showing.keep(shown, out, as_json=as_json)


@app.command()
def roundtrip(picture: Picture, out: Out = OUT, model: Model = EMBEDDED, as_json: AsJson = False) -> None:
    """Send a picture through the autoencoder and back."""
    from engine.lab import autoencoder, pictures, showing

    before = pictures.opened(picture)
    showing.folder(out)
    with room(model, STEPS, None, SEED) as opened:
        shown = autoencoder.roundtrip(opened, before)
    showing.keep(shown, out, as_json=as_json)


@app.command()
def blend(
    a: Picture,
    b: Picture,
    share: Annotated[float, typer.Option(min=0, max=1, help="Share of the second picture.")] = 0.5,
    strength: Annotated[float, typer.Option(min=0, max=1, help="How much noise is added before denoising.")] = 0.4,
    words: Told = "",
    out: Out = OUT, seed: Seed = SEED, steps: Steps = STEPS, guidance: Guidance = None, model: Model = EMBEDDED,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Mix two pictures: as pixels, as latents, and through the network."""
    from engine.lab import autoencoder, pictures, showing

    first, second = pictures.opened(a), pictures.opened(b)
    showing.folder(out)
    with room(model, steps, guidance, seed) as opened:
        shown = autoencoder.blend(opened, first, second, share=share, strength=strength, words=asked(words))
    showing.keep(shown, out, as_json=as_json)


@app.command()
def forward(
    picture: Picture,
    words: Told = "",
    out: Out = OUT, seed: Seed = SEED, guidance: Guidance = None, model: Model = EMBEDDED, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show a picture at eight levels of noise, and the network's estimate of x0 at each."""
    from engine.lab import forward as noising
    from engine.lab import pictures, showing

    clean = pictures.opened(picture)
    showing.folder(out)
    with room(model, STEPS, guidance, seed) as opened:
        shown = noising.forward(opened, clean, asked(words))
    showing.keep(shown, out, as_json=as_json)


@app.command()
def lesson(
    name: Annotated[str, typer.Option(help="Writes NAME.md, and its pictures into a folder NAME.")] = "lesson",
    words: WordList = WORDS,
    out: Out = OUT, seed: Seed = SEED, steps: Steps = STEPS, guidance: Guidance = None, model: Model = EMBEDDED,
) -> None:  # fmt: skip
    """Run all experiments with fixed prompts and pictures and write one page.

    `--out docs --name lab` renews docs/lab.md.
    """
    from engine.lab import lesson as course
    from engine.lab.nearest import vocabulary
    from engine.worker.embedding import Embedder

    known = vocabulary(words)
    with room(model, steps, guidance, seed) as opened:
        typer.echo(str(course.lesson(opened, Embedder(), known, out, name)))


def main(args: list[str] | None = None) -> int:
    """Run a command line and return the exit code. A mistake of the caller's prints one sentence and returns 2."""
    from engine.unfit import Unfit

    try:
        given = sys.argv[1:] if args is None else args
        return int(app(given or ["--help"], prog_name="darkroom lab", standalone_mode=False) or 0)
    except Unfit as unfit:
        typer.echo(f"darkroom: {unfit.sentence}", err=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
