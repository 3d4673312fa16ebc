"""`darkroom train autoencoder`: pictures into latents and back, against a discriminator."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.training.commands.options import Cache, Course, Pictures, with_course

From = Annotated[
    str,
    typer.Option("--from", metavar="MODEL", help="embedded, or a folder of diffusers; without it from scratch."),
]
KeepLatents = Annotated[
    bool | None,
    typer.Option(
        "--keep-latents/--new-latents",
        help="Only the decoder learns, so networks trained on these latents stay right: as a rule with --from.",
    ),
]
Shape = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="From scratch: compact (8×8×16 latents), deep (8×8×32) or wide (16×16×8); else compact."
    ),
]
KlWeight = Annotated[
    float | None, typer.Option(min=1e-9, max=0.1, help="Weight of the KL term; where it begins, if it is moved.")
]
NoiseToSignal = Annotated[
    float | None,
    typer.Option(min=0, max=10, help="Of the latents: the KL term's weight is moved towards it; 0 leaves it be."),
]
Equivariance = Annotated[
    float | None, typer.Option(min=0, max=1, help="How often latents are turned and rescaled, with the picture.")
]
Perceptual = Annotated[
    float | None, typer.Option(min=0, max=100, help="Weight of the difference in the judge's features.")
]
Variants = Annotated[int | None, typer.Option(min=1, max=64, help="Of each drawing of the built-in artwork; else 4.")]


@with_course
def autoencoder(
    course: Course,
    source: From = "",
    keep_latents: KeepLatents = None,
    shape: Shape = "",
    kl: KlWeight = None,
    noise_to_signal: NoiseToSignal = None,
    equivariance: Equivariance = None,
    perceptual: Perceptual = None,
    variants: Variants = None,
    data: Pictures = None,
    cache: Cache = None,
) -> None:
    """Trains the autoencoder, on the built-in artwork or on a folder of pictures."""
    from engine.training.commands.run_autoencoder import run
    from engine.training.commands.session import open_session

    given = {**course.given, "keep_latents": keep_latents, "shape": shape or None, "variants": variants}
    given |= {"kl": kl, "noise_to_signal": noise_to_signal, "equivariance": equivariance, "perceptual": perceptual}
    with open_session("autoencoder", course, data) as session:
        raise typer.Exit(run(session, source, data, cache, given))
