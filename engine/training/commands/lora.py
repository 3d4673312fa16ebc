"""`darkroom train lora`: a small addition to any Stable Diffusion model, from a folder of captioned pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from engine.training.commands.options import (
    Batch,
    Course,
    Flip,
    Fresh,
    Minutes,
    Out,
    Rate,
    Samples,
    Seed,
    Steps,
    Threads,
    Until,
)


def lora(
    out: Out,
    data: Annotated[Path, typer.Option("--data", metavar="FOLDER", help="Captioned pictures.")],
    model: Annotated[
        str, typer.Option("--model", help="embedded, a folder of diffusers, or a name on the model hub.")
    ] = "embedded",
    rank: Annotated[
        int | None, typer.Option(min=1, max=1024, help="How much the addition can say.  [default: 8]")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(min=1e-3, max=1e4, help="Its weight times the rank; else the rank.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=16, max=4096, help="Side of the pictures; else the model's.")] = None,
    precision: Annotated[Literal["bf16", "fp32"] | None, typer.Option(help="Of the network.  [default: bf16]")] = None,
    merge: Annotated[
        Path | None,
        typer.Option("--merge", metavar="FOLDER", help="Also write the whole model with the addition in it."),
    ] = None,
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
    """Trains a LoRA on a folder of captioned pictures; the model itself stays as it is."""
    from engine.training.commands import run_lora
    from engine.training.commands.session import open_session

    given = {
        "rank": rank,
        "alpha": alpha,
        "size": size,
        "precision": precision,
        "batch": batch,
        "rate": rate,
        "seed": seed,
    }
    with open_session("lora", Course(out, steps, samples, until, minutes, threads, fresh)) as session:
        raise typer.Exit(run_lora.train(session, model, data, merge, flip, given))
