"""The commands `darkroom train words`, `substitutes`, `styles` and `pack`: each writes one file about the artwork."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from training.commands.options import Cache
from training.commands.progress import show_progress

if TYPE_CHECKING:
    import numpy as np

    from training.evaluation.prompt_adherence import DrawPictures


def words(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The list, as JSON.")], cache: Cache = None
) -> None:
    """Write the labels and tags of the built-in artwork as a list, for `darkroom lab nearest`."""
    from training.commands import builtin_artwork
    from training.pictures.artwork import LABEL_PACKAGE

    descriptions = [drawing.description for drawing in builtin_artwork.load_drawings(cache)]
    vocabulary = {word for description in descriptions for word in (description.label, *description.tags)}
    source = f"{LABEL_PACKAGE.name} {LABEL_PACKAGE.version}, {LABEL_PACKAGE.credit}, {LABEL_PACKAGE.licence}"
    out.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"source": source, "words": sorted(vocabulary)}, ensure_ascii=False, indent=0)
    out.write_text(content + "\n", "utf-8")
    typer.echo(f"{out}: {len(vocabulary):,} words")


def substitutes(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The list, as JSON.")], cache: Cache = None
) -> None:
    """Write the nouns of WordNet that no label has, each with the label of the nearest drawing, which is drawn."""
    import msgspec

    from engine.process.model_settings import SubstitutesFile
    from training.commands import builtin_artwork
    from training.pictures.artwork import WORDNET_PACKAGE

    source = f"{WORDNET_PACKAGE.name} {WORDNET_PACKAGE.version}, {WORDNET_PACKAGE.credit}: see LICENSE.WordNet"
    nouns = builtin_artwork.load_substitutes(cache)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(msgspec.json.format(msgspec.json.encode(SubstitutesFile(source, nouns)), indent=1) + b"\n")
    typer.echo(f"{out}: {len(nouns):,} nouns")


STEPS = 12  # as good as 25 for telling what a picture shows


def styles(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The list, as JSON.")],
    source: Annotated[
        str, typer.Option("--from", metavar="MODEL", help="The model that draws: embedded, or a folder.")
    ] = "embedded",
    style: Annotated[
        Literal["soft shading", "flat design"], typer.Option(help="The style beside the main one.")
    ] = "soft shading",
) -> None:
    """Write the labels that come out well in a style other than the main one, as the model's own judge sees them."""
    import msgspec

    from engine.models.judge import load_judge
    from engine.process.model_settings import WEIGHTS_FOLDER, StylesFile
    from training.commands import builtin_artwork
    from training.evaluation.prompt_adherence import find_labels_of_style
    from training.pictures.variants import MAIN_STYLE

    judge = load_judge(WEIGHTS_FOLDER / "judge")
    draw_pictures = _make_drawer(builtin_artwork.find_weights(source))
    labels = sorted(find_labels_of_style(draw_pictures, judge, style))
    content = msgspec.json.encode(StylesFile(MAIN_STYLE, {style: labels}))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(msgspec.json.format(content, indent=1) + b"\n")
    typer.echo(f"{out}: of {len(judge.labels):,} labels {len(labels):,} in {style}.")


def _make_drawer(weights: Path) -> DrawPictures:
    """Return what draws small pictures of the model in `weights`, without a style guide and its large decoder."""
    from dataclasses import replace

    import torch

    from training.commands import builtin_artwork
    from training.diffusion.sampling import decode_latents
    from training.evaluation.context import load_sampler

    plain_sampler = replace(load_sampler(weights), steps=STEPS, style_guide=None)
    autoencoder, _ = builtin_artwork.load_encoders(weights)

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        with show_progress("drawing") as report_progress, torch.inference_mode():

            def report_steps(finished: int, total: int) -> None:
                report_progress(finished / total, f"{len(prompts)} pictures")

            sampler = replace(plain_sampler, on_progress=report_steps)
            return decode_latents(autoencoder, sampler.sample_latents(prompts, seeds).float())

    return draw


def pack(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file, such as artwork.safetensors.")],
    cache: Cache = None,
) -> None:
    """Write the built-in artwork into one file, for `--cache` on a machine without npm."""
    from training.commands import builtin_artwork
    from training.pictures.packed_artwork import SUFFIX, write_pack

    if out.suffix != SUFFIX:
        raise ValueError(f"--out takes a file whose name ends in {SUFFIX}.")
    drawings = builtin_artwork.load_drawings(cache, with_related_words=True)
    notices = builtin_artwork.read_notices(cache)
    lemmas = builtin_artwork.load_held_out_lemmas(cache)
    size = write_pack(out, drawings, notices, lemmas)
    typer.echo(f"{out}: {len(drawings):,} drawings, {size / 1e6:.1f} MB")
