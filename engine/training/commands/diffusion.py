"""`darkroom train diffusion`: the network that makes latents out of noise and words."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from engine.training.commands.session import Session


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
    from engine.training.commands.session import open_session

    given = {"seed": seed, "rate": rate, "batch": batch}
    with open_session("diffusion", Course(out, steps, samples, until, minutes, threads, fresh)) as session:
        raise typer.Exit(_on_artwork(session, source, cache, given))


def _on_artwork(session: Session, source: str, cache: Path | None, given: dict[str, float | None]) -> int:
    from engine.training.commands import builtin
    from engine.training.diffusion import Judge, Settings, Trainer, open_network
    from engine.training.validate import PROMPTS

    settings = session.settings(partial(Settings), **given)
    weights = builtin.weights_of(source)
    session.belongs({"starting weights": source, "pictures": "the built-in artwork"})
    train, held_back = builtin.variants(cache, lambda: builtin.encoders(weights), settings.seed)
    vae, text = builtin.encoders(weights)
    scheduler = builtin.schedule(weights)
    trainer = Trainer(open_network(weights / "unet"), train, scheduler.alphas_cumprod, settings)
    judge = Judge(trainer, held_back, text(PROMPTS), vae, scheduler)
    return session.train(trainer, judge, lambda: None)
