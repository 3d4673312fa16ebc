"""The `darkroom train autoencoder` command: trains encoder and decoder against a discriminator."""

from __future__ import annotations

from typing import Annotated

import typer

from training.commands.options import Cache, Pictures, TrainOptions, with_train_options

StartModel = Annotated[
    str, typer.Option("--from", metavar="MODEL", help="embedded, or a diffusers folder; by default from scratch.")
]
KeepLatents = Annotated[
    bool | None,
    typer.Option(
        "--keep-latents/--new-latents",
        help="Train only the decoder, so networks trained on these latents stay valid; default with --from.",
    ),
]
Shape = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="From scratch: compact (8×8×16 latents), deep (8×8×32) or wide (16×16×8); else compact."
    ),
]
KlWeight = Annotated[
    float | None, typer.Option(min=1e-9, max=0.1, help="Weight of the KL term; its first value if it adapts.")
]
NoiseToSignal = Annotated[
    float | None,
    typer.Option(min=0, max=10, help="Wanted in the latents; the KL term's weight adapts to it, 0: it stays."),
]
Equivariance = Annotated[
    float | None, typer.Option(min=0, max=1, help="Share of batches with rotated, rescaled latents and pictures.")
]
Perceptual = Annotated[
    float | None, typer.Option(min=0, max=100, help="Weight of the difference in the judge's features.")
]
Variants = Annotated[
    int | None, typer.Option(min=1, max=64, help="Variants of each drawing of the built-in artwork; else 4.")
]


@with_train_options
def autoencoder(
    options: TrainOptions,
    source: StartModel = "",
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
    """Train the autoencoder, on the built-in artwork or on a folder of pictures."""
    from training.commands.run_autoencoder import train_autoencoder
    from training.commands.session import open_session

    overrides = {
        **options.setting_overrides,
        "keep_latents": keep_latents,
        "shape": shape or None,
        "variants": variants,
    }
    overrides |= {"kl": kl, "noise_to_signal": noise_to_signal, "equivariance": equivariance, "perceptual": perceptual}
    with open_session("autoencoder", options, data) as session:
        raise typer.Exit(train_autoencoder(session, source, data, cache, overrides))
