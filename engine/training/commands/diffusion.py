"""`darkroom train diffusion`: the network that makes latents out of noise and words."""

from __future__ import annotations

import typer

from engine.training.commands.options import (
    Batch,
    Cache,
    Course,
    Flip,
    Fresh,
    From,
    Minutes,
    Out,
    Pictures,
    Rate,
    Samples,
    Seed,
    Steps,
    Threads,
    Until,
)


def diffusion(
    out: Out,
    source: From = "embedded",
    data: Pictures = None,
    cache: Cache = None,
    steps: Steps = None,
    samples: Samples = None,
    until: Until = "",
    batch: Batch = None,
    rate: Rate = None,
    seed: Seed = None,
    minutes: Minutes = None,
    threads: Threads = None,
    flip: Flip = False,
    fresh: Fresh = False,
) -> None:
    """Trains the diffusion network, on the built-in artwork or on a folder of captioned pictures."""
    from engine.training.commands import run_diffusion as run
    from engine.training.commands.session import open_session

    given = {"seed": seed, "rate": rate, "batch": batch}
    with open_session("diffusion", Course(out, steps, samples, until, minutes, threads, fresh), data) as session:
        if data is None:
            raise typer.Exit(run.on_artwork(session, source, cache, given))
        raise typer.Exit(run.on_own(session, source, data, flip, given))
