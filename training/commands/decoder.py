"""The `darkroom train decoder` command: trains the large decoder, which mends a network's errors."""

from __future__ import annotations

from typing import Annotated

import typer

from training.commands.options import Cache, TrainOptions, with_train_options

Model = Annotated[
    str,
    typer.Option("--from", metavar="MODEL", help="Whose latents it decodes: embedded, or a folder with unet and vae."),
]
Widths = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Widths of the two new levels, from the pixels' end, or of all levels; else the autoencoder's outermost.",
    ),
]
PictureCount = Annotated[
    int | None, typer.Option("--pictures", min=8, max=20000, help="Prepared before training, 220 kB each; else 3000.")
]
Crop = Annotated[int | None, typer.Option(min=2, max=64, help="Latents a side that a step decodes; else 12.")]
GanWeight = Annotated[
    float | None,
    typer.Option(min=0, max=10, help="Length of the discriminator's gradient, relative to the losses'; else 0.5."),
]
GanFrom = Annotated[
    float | None, typer.Option(min=0, max=1, help="Share of the run after which the discriminator learns; else 0.3.")
]
Sharpness = Annotated[
    float | None, typer.Option(min=0, max=100, help="Weight of the difference in local gradient energy; else 0.5.")
]
Perceptual = Annotated[
    float | None, typer.Option(min=0, max=100, help="Weight of the difference in the judge's features; else 0.1.")
]


@with_train_options
def decoder(
    options: TrainOptions,
    source: Model = "embedded",
    widths: Widths = None,
    pictures: PictureCount = None,
    crop: Crop = None,
    gan_weight: GanWeight = None,
    gan_from: GanFrom = None,
    sharpness: Sharpness = None,
    perceptual: Perceptual = None,
    cache: Cache = None,
) -> None:
    """Train a decoder that draws a model's pictures four times as large, on latents that its network denoised."""
    from training.commands.run_decoder import train_decoder
    from training.commands.session import open_session

    overrides = {**options.setting_overrides, "widths": widths, "pictures": pictures, "crop": crop}
    overrides |= {"gan_weight": gan_weight, "gan_from": gan_from, "sharpness": sharpness, "perceptual": perceptual}
    with open_session("decoder", options) as session:
        raise typer.Exit(train_decoder(session, source, cache, overrides))
