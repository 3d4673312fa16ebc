"""`darkroom train autoencoder`: pictures into latents and back, against a discriminator."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.training.commands.options import (
    Batch,
    Cache,
    Course,
    Fresh,
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


def autoencoder(
    out: Out,
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
    steps: Steps = None,
    samples: Samples = None,
    until: Until = "",
    batch: Batch = None,
    rate: Rate = None,
    seed: Seed = None,
    minutes: Minutes = None,
    threads: Threads = None,
    fresh: Fresh = False,
) -> None:
    """Trains the autoencoder, on the built-in artwork or on a folder of pictures."""
    from engine.training.commands.run_autoencoder import run
    from engine.training.commands.session import open_session

    given = {"seed": seed, "rate": rate, "batch": batch, "keep_latents": keep_latents}
    with open_session("autoencoder", Course(out, steps, samples, until, minutes, threads, fresh), data) as session:
        raise typer.Exit(run(session, source, data, cache, given))
