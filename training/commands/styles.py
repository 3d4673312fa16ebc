"""The `darkroom train styles` command: lists the labels that the model draws well in each of its styles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from training.commands.progress import show_progress

if TYPE_CHECKING:
    import numpy as np

    from training.evaluation.style_labels import DrawPictures

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
    from engine.process.model_words import WEIGHTS_FOLDER, StylesFile
    from training.commands import builtin_artwork
    from training.evaluation.style_labels import find_labels_of_style
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
    from training.evaluation.context_loader import load_sampler

    plain_sampler = replace(load_sampler(weights), steps=STEPS, style_guide=None)
    autoencoder, _ = builtin_artwork.load_encoders(weights)

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        with show_progress("drawing") as report_progress, torch.inference_mode():

            def report_steps(finished: int, total: int) -> None:
                report_progress(finished / total, f"{len(prompts)} pictures")

            sampler = replace(plain_sampler, on_progress=report_steps)
            return decode_latents(autoencoder, sampler.sample_latents(prompts, seeds).float())

    return draw
