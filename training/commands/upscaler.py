"""The `darkroom train upscaler` command: trains the network that upscales pictures four times."""

from __future__ import annotations

from typing import Annotated

import typer

from training.commands.options import Cache, Pictures, TrainOptions, with_train_options


@with_train_options
def upscaler(
    options: TrainOptions,
    source: Annotated[
        str, typer.Option("--from", metavar="FILE", help="embedded, or a safetensors file; by default from scratch.")
    ] = "",
    autoencoder: Annotated[
        str,
        typer.Option("--autoencoder", metavar="MODEL", help="Whose blur it learns to repair: embedded, or a folder."),
    ] = "embedded",
    pictures: Annotated[
        int, typer.Option("--pictures", min=8, max=20000, help="Prepared before training, 220 kB of memory each.")
    ] = 1600,
    data: Pictures = None,
    cache: Cache = None,
) -> None:
    """Train the super-resolver, on the built-in artwork or on a folder of pictures."""
    from training.commands.run_upscaler import UpscalerSources, train_upscaler
    from training.commands.session import open_session

    with open_session("upscaler", options, data) as session:
        raise typer.Exit(
            train_upscaler(
                session, UpscalerSources(source, autoencoder, data, cache, pictures), options.setting_overrides
            )
        )
