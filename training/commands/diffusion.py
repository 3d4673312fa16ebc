"""The `darkroom train diffusion` command: trains the network that denoises latents for a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.commands.options import Cache, Flip, Pictures, StartModel, TrainOptions, with_train_options


@with_train_options
def diffusion(
    options: TrainOptions,
    source: StartModel = "embedded",
    autoencoder: Annotated[
        str,
        typer.Option(
            "--autoencoder",
            metavar="FOLDER",
            help="Train on the latents of this autoencoder; by default on those of the starting model's own.",
        ),
    ] = "",
    data: Pictures = None,
    cache: Cache = None,
    flip: Flip = False,
    focus: Annotated[
        Path | None,
        typer.Option(
            "--focus",
            metavar="FILE",
            help="Labels of the built-in artwork to learn better, one a line: a third of the pictures are theirs.",
        ),
    ] = None,
) -> None:
    """Train the diffusion network, on the built-in artwork or on a folder of captioned pictures."""
    from training.commands import run_diffusion as run
    from training.commands.session import open_session

    if data is not None and focus is not None:
        raise ValueError("--focus names labels of the built-in artwork: leave it out with --data.")
    with open_session("diffusion", options, data) as session:
        if data is None:
            raise typer.Exit(
                run.train_on_artwork(session, source, autoencoder, cache, focus, options.setting_overrides)
            )
        raise typer.Exit(run.train_on_dataset(session, source, autoencoder, data, flip, options.setting_overrides))
