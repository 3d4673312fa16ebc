"""The `darkroom train upscaler` command: trains the network that enlarges pictures four times."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.training.commands.options import Cache, Course, Pictures, with_course


@with_course
def upscaler(
    course: Course,
    source: Annotated[
        str,
        typer.Option("--from", metavar="FILE", help="embedded, or a safetensors file; by default from scratch."),
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
    from engine.training.commands.run_upscaler import Sources, run
    from engine.training.commands.session import open_session

    with open_session("upscaler", course, data) as session:
        raise typer.Exit(run(session, Sources(source, autoencoder, data, cache, pictures), course.given))
