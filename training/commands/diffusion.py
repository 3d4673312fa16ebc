"""The `darkroom train diffusion` command: trains the network that denoises latents for a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.commands.options import Cache, Flip, Pictures, StartModel, TrainOptions, with_train_options

Autoencoder = Annotated[
    str,
    typer.Option(
        "--autoencoder",
        metavar="FOLDER",
        help="Train on the latents of this autoencoder; by default on those of the starting model's own.",
    ),
]
FocusFile = Annotated[
    Path | None,
    typer.Option(
        "--focus",
        metavar="FILE",
        help='Drawings of the built-in artwork to learn better, one a line: "label" or "label, style".',
    ),
]
FocusShare = Annotated[
    float | None,
    typer.Option("--focus-share", min=0.01, max=0.99, help="Share of the pictures in --focus.  [default: 0.35]"),
]


@with_train_options
def diffusion(
    options: TrainOptions,
    source: StartModel = "embedded",
    autoencoder: Autoencoder = "",
    data: Pictures = None,
    cache: Cache = None,
    flip: Flip = False,
    focus: FocusFile = None,
    focus_share: FocusShare = None,
) -> None:
    """Train the diffusion network, on the built-in artwork or on a folder of captioned pictures."""
    from training.commands import run_diffusion as run
    from training.commands.focus import read_focus
    from training.commands.session import open_session

    _check_focus(data, focus, focus_share)
    with open_session("diffusion", options, data) as session:
        if data is None:
            raise typer.Exit(
                run.train_on_artwork(
                    session, source, autoencoder, cache, read_focus(focus, focus_share), options.setting_overrides
                )
            )
        raise typer.Exit(run.train_on_dataset(session, source, autoencoder, data, flip, options.setting_overrides))


def _check_focus(data: Path | None, focus: Path | None, focus_share: float | None) -> None:
    if data is not None and focus is not None:
        raise ValueError("--focus names drawings of the built-in artwork: leave it out with --data.")
    if focus is None and focus_share is not None:
        raise ValueError("--focus-share says how much --focus counts: name a file with --focus, too.")
