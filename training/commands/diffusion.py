"""The `darkroom train diffusion` command: trains the network that denoises latents for a prompt."""

from __future__ import annotations

import typer

from training.commands.options import Cache, Flip, Pictures, StartModel, TrainOptions, with_train_options


@with_train_options
def diffusion(
    options: TrainOptions,
    source: StartModel = "embedded",
    data: Pictures = None,
    cache: Cache = None,
    flip: Flip = False,
) -> None:
    """Train the diffusion network, on the built-in artwork or on a folder of captioned pictures."""
    from training.commands import run_diffusion as run
    from training.commands.session import open_session

    with open_session("diffusion", options, data) as session:
        if data is None:
            raise typer.Exit(run.train_on_artwork(session, source, cache, options.setting_overrides))
        raise typer.Exit(run.train_on_dataset(session, source, data, flip, options.setting_overrides))
