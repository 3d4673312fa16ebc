"""The `darkroom train diffusion` command: trains the network that denoises latents for a prompt."""

from __future__ import annotations

import typer

from engine.training.commands.options import Cache, Course, Flip, From, Pictures, with_course


@with_course
def diffusion(
    course: Course,
    source: From = "embedded",
    data: Pictures = None,
    cache: Cache = None,
    flip: Flip = False,
) -> None:
    """Train the diffusion network, on the built-in artwork or on a folder of captioned pictures."""
    from engine.training.commands import run_diffusion as run
    from engine.training.commands.session import open_session

    with open_session("diffusion", course, data) as session:
        if data is None:
            raise typer.Exit(run.on_artwork(session, source, cache, course.given))
        raise typer.Exit(run.on_own(session, source, data, flip, course.given))
