"""`darkroom train autoencoder`: pictures into latents and back, against a discriminator."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.training.commands.options import Cache, Course, Pictures, with_course


@with_course
def autoencoder(
    course: Course,
    source: Annotated[
        str,
        typer.Option("--from", metavar="MODEL", help="embedded, or a folder of diffusers; without it from scratch."),
    ] = "",
    keep_latents: Annotated[
        bool | None,
        typer.Option(
            "--keep-latents/--new-latents",
            help="Only the decoder learns, so networks trained on these latents stay right: as a rule with --from.",
        ),
    ] = None,
    data: Pictures = None,
    cache: Cache = None,
) -> None:
    """Trains the autoencoder, on the built-in artwork or on a folder of pictures."""
    from engine.training.commands.run_autoencoder import run
    from engine.training.commands.session import open_session

    given = {**course.given, "keep_latents": keep_latents}
    with open_session("autoencoder", course, data) as session:
        raise typer.Exit(run(session, source, data, cache, given))
