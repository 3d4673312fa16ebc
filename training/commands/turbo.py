"""The `darkroom train turbo` command: distils a Stable Diffusion model into a LoRA that draws in four steps."""

from __future__ import annotations

from typing import Annotated

import typer

from training.commands.lora import BaseModel
from training.commands.options import Cache, Flip, Pictures, TrainOptions, with_train_options

Guidance = Annotated[
    float | None, typer.Option(min=1.0, max=30.0, help="The teacher's classifier-free guidance.  [default: 4]")
]
Interval = Annotated[
    str | None,
    typer.Option(
        metavar="FROM-TO",
        help="In which part of the teacher's steps guidance holds.  [default: 0.3-0.8 for embedded, else 0-1]",
    ),
]
Skip = Annotated[
    int | None, typer.Option(min=1, max=25, help="How many of its fifty steps the teacher takes as one.  [default: 5]")
]
Rank = Annotated[int | None, typer.Option(min=1, max=1024, help="Rank of the LoRA.  [default: 32]")]


@with_train_options
def turbo(
    options: TrainOptions,
    model: BaseModel = "embedded",
    data: Pictures = None,
    cache: Cache = None,
    guidance: Guidance = None,
    interval: Interval = None,
    skip: Skip = None,
    rank: Rank = None,
    flip: Flip = False,
) -> None:
    """Distil a model into a LoRA that draws in four steps, on the built-in artwork or on captioned pictures."""
    from training.commands import run_turbo
    from training.commands.session import open_session

    own_settings = {"guidance": guidance, "interval": interval, "skip": skip, "rank": rank}
    overrides = {**options.setting_overrides, **own_settings}
    with open_session("turbo", options, data) as session:
        raise typer.Exit(run_turbo.train_turbo(session, model, data, cache, flip, overrides))
