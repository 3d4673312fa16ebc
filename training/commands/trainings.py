"""The commands of `darkroom train` that train a network: their options. Each imports torch only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from training.commands.options import Cache, Flip, Pictures, TrainOptions, with_train_options

BaseModel = Annotated[
    str, typer.Option("--model", help="embedded, a diffusers folder, or a name on the model hub, in safetensors.")
]


AutoencoderSource = Annotated[
    str, typer.Option("--from", metavar="MODEL", help="embedded, or a diffusers folder; by default from scratch.")
]
AutoencoderKeepLatents = Annotated[
    bool | None,
    typer.Option(
        "--keep-latents/--new-latents",
        help="Train only the decoder, so networks trained on these latents stay valid; default with --from.",
    ),
]
AutoencoderShape = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="From scratch: compact (8×8×16 latents), deep (8×8×32) or wide (16×16×8); else compact."
    ),
]
AutoencoderKl = Annotated[
    float | None, typer.Option(min=1e-9, max=0.1, help="Weight of the KL term; its first value if it adapts.")
]
AutoencoderNoiseToSignal = Annotated[
    float | None,
    typer.Option(min=0, max=10, help="Wanted in the latents; the KL term's weight adapts to it, 0: it stays."),
]
AutoencoderEquivariance = Annotated[
    float | None, typer.Option(min=0, max=1, help="Share of batches with rotated, rescaled latents and pictures.")
]
AutoencoderPerceptual = Annotated[
    float | None, typer.Option(min=0, max=100, help="Weight of the difference in the judge's features.")
]
AutoencoderVariants = Annotated[
    int | None, typer.Option(min=1, max=64, help="Variants of each drawing of the built-in artwork; else 4.")
]


@with_train_options
def autoencoder(
    options: TrainOptions,
    source: AutoencoderSource = "",
    keep_latents: AutoencoderKeepLatents = None,
    shape: AutoencoderShape = "",
    kl: AutoencoderKl = None,
    noise_to_signal: AutoencoderNoiseToSignal = None,
    equivariance: AutoencoderEquivariance = None,
    perceptual: AutoencoderPerceptual = None,
    variants: AutoencoderVariants = None,
    data: Pictures = None,
    cache: Cache = None,
) -> None:
    """Train the autoencoder, on the built-in artwork or on a folder of pictures."""
    from training.commands.run_pixel_networks import train_autoencoder
    from training.commands.session import open_session

    overrides = {
        "keep_latents": keep_latents,
        "shape": shape or None,
        "variants": variants,
        "kl": kl,
        "noise_to_signal": noise_to_signal,
        "equivariance": equivariance,
        "perceptual": perceptual,
    }
    with open_session("autoencoder", options, data) as session:
        raise typer.Exit(train_autoencoder(session, source, data, cache, overrides))


DecoderSource = Annotated[
    str,
    typer.Option("--from", metavar="MODEL", help="Whose latents it decodes: embedded, or a folder with unet and vae."),
]
DecoderWidths = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Widths of the two new levels, from the pixels' end, or of all levels; else the autoencoder's outermost.",
    ),
]
DecoderPictures = Annotated[
    int | None, typer.Option("--pictures", min=8, max=20000, help="Prepared before training, 220 kB each; else 3000.")
]
DecoderCrop = Annotated[int | None, typer.Option(min=2, max=64, help="Latents a side that a step decodes; else 12.")]
DecoderGanWeight = Annotated[
    float | None,
    typer.Option(min=0, max=10, help="Length of the discriminator's gradient, relative to the losses'; else 0.5."),
]
DecoderGanFrom = Annotated[
    float | None, typer.Option(min=0, max=1, help="Share of the run after which the discriminator learns; else 0.3.")
]
DecoderSharpness = Annotated[
    float | None, typer.Option(min=0, max=100, help="Weight of the difference in local gradient energy; else 0.5.")
]
DecoderPerceptual = Annotated[
    float | None, typer.Option(min=0, max=100, help="Weight of the difference in the judge's features; else 0.1.")
]


@with_train_options
def decoder(
    options: TrainOptions,
    source: DecoderSource = "embedded",
    widths: DecoderWidths = None,
    pictures: DecoderPictures = None,
    crop: DecoderCrop = None,
    gan_weight: DecoderGanWeight = None,
    gan_from: DecoderGanFrom = None,
    sharpness: DecoderSharpness = None,
    perceptual: DecoderPerceptual = None,
    cache: Cache = None,
) -> None:
    """Train a decoder that draws a model's pictures four times as large, on latents that its network denoised."""
    from training.commands.run_decoder import train_decoder
    from training.commands.session import open_session

    overrides = {
        "widths": widths,
        "pictures": pictures,
        "crop": crop,
        "gan_weight": gan_weight,
        "gan_from": gan_from,
        "sharpness": sharpness,
        "perceptual": perceptual,
    }
    with open_session("decoder", options) as session:
        raise typer.Exit(train_decoder(session, source, cache, overrides))


DiffusionSource = Annotated[
    str,
    typer.Option(
        "--from", metavar="MODEL", help="The starting model: embedded, a diffusers folder, or (diffusion) scratch."
    ),
]
DiffusionAutoencoder = Annotated[
    str,
    typer.Option(
        "--autoencoder",
        metavar="FOLDER",
        help="Train on the latents of this autoencoder; by default on those of the starting model's own.",
    ),
]
DiffusionFocus = Annotated[
    Path | None,
    typer.Option(
        "--focus",
        metavar="FILE",
        help='Drawings of the built-in artwork to learn better, one a line: "label" or "label, style".',
    ),
]
DiffusionFocusShare = Annotated[
    float | None,
    typer.Option("--focus-share", min=0.01, max=0.99, help="Share of the pictures in --focus.  [default: 0.35]"),
]


@with_train_options
def diffusion(
    options: TrainOptions,
    source: DiffusionSource = "embedded",
    autoencoder: DiffusionAutoencoder = "",
    data: Pictures = None,
    cache: Cache = None,
    flip: Flip = False,
    focus: DiffusionFocus = None,
    focus_share: DiffusionFocusShare = None,
) -> None:
    """Train the diffusion network, on the built-in artwork or on a folder of captioned pictures."""
    from training.commands.builtin_artwork import read_focus
    from training.commands.run_diffusion import train_on_artwork, train_on_dataset
    from training.commands.session import open_session

    if data is not None and focus is not None:
        raise ValueError("--focus names drawings of the built-in artwork: leave it out with --data.")
    if focus is None and focus_share is not None:
        raise ValueError("--focus-share says how much --focus counts: name a file with --focus, too.")
    with open_session("diffusion", options, data) as session:
        if data is None:
            raise typer.Exit(train_on_artwork(session, source, autoencoder, cache, read_focus(focus, focus_share)))
        raise typer.Exit(train_on_dataset(session, source, autoencoder, data, flip))


@with_train_options
def lora(
    options: TrainOptions,
    data: Annotated[Path, typer.Option("--data", metavar="FOLDER", help="Captioned pictures.")],
    model: BaseModel = "embedded",
    rank: Annotated[int | None, typer.Option(min=1, max=1024, help="Rank of the LoRA.  [default: 8]")] = None,
    alpha: Annotated[
        float | None, typer.Option(min=1e-3, max=1e4, help="The LoRA is scaled by alpha/rank.  [default: the rank]")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=16, max=4096, help="Side of the pictures; by default the model's.")
    ] = None,
    precision: Annotated[
        Literal["bf16", "fp32"] | None, typer.Option(help="Number format of the network.  [default: bf16]")
    ] = None,
    merge: Annotated[
        Path | None, typer.Option("--merge", metavar="FOLDER", help="Also write the model with the LoRA merged.")
    ] = None,
    flip: Flip = False,
) -> None:
    """Train a LoRA on a folder of captioned pictures; the model itself stays as it is."""
    from training.commands.run_lora import train_lora
    from training.commands.session import open_session

    overrides = {"rank": rank, "alpha": alpha, "size": size, "precision": precision}
    with open_session("lora", options, data) as session:
        raise typer.Exit(train_lora(session, model, data, merge, flip, overrides))


@with_train_options
def turbo(
    options: TrainOptions,
    model: BaseModel = "embedded",
    data: Pictures = None,
    cache: Cache = None,
    guidance: Annotated[
        float | None, typer.Option(min=1.0, max=30.0, help="The teacher's classifier-free guidance.  [default: 4]")
    ] = None,
    interval: Annotated[
        str | None,
        typer.Option(
            metavar="FROM-TO",
            help="In which part of the teacher's steps guidance holds.  [default: 0.3-0.8 for embedded, else 0-1]",
        ),
    ] = None,
    skip: Annotated[
        int | None,
        typer.Option(min=1, max=25, help="How many of its fifty steps the teacher takes as one.  [default: 5]"),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, max=1024, help="Rank of the LoRA.  [default: 32]")] = None,
    flip: Flip = False,
) -> None:
    """Distil a model into a LoRA that draws in four steps, on the built-in artwork or on captioned pictures."""
    from training.commands.run_lora import train_turbo
    from training.commands.session import open_session

    overrides = {"guidance": guidance, "interval": interval, "skip": skip, "rank": rank}
    with open_session("turbo", options, data) as session:
        raise typer.Exit(train_turbo(session, model, data, cache, flip, overrides))


@with_train_options
def upscaler(
    options: TrainOptions,
    source: Annotated[
        str, typer.Option("--from", metavar="FILE", help="embedded, or a safetensors file; by default from scratch.")
    ] = "",
    autoencoder: Annotated[
        str,
        typer.Option("--autoencoder", metavar="MODEL", help="Whose blur it learns to repair: embedded, or a folder."),
    ] = "embedded",
    pictures: Annotated[
        int, typer.Option("--pictures", min=8, max=20000, help="Prepared before training, 220 kB of memory each.")
    ] = 1600,
    data: Pictures = None,
    cache: Cache = None,
) -> None:
    """Train the super-resolver, on the built-in artwork or on a folder of pictures."""
    from training.commands.run_pixel_networks import UpscalerSources, train_upscaler
    from training.commands.session import open_session

    sources = UpscalerSources(source, autoencoder, data, cache, pictures)
    with open_session("upscaler", options, data) as session:
        raise typer.Exit(train_upscaler(session, sources))


@with_train_options
def judge(
    options: TrainOptions,
    cache: Cache = None,
    widths: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="Channels of each stage, for another architecture than the built-in judge: 48,96,192,320.",
        ),
    ] = None,
) -> None:
    """Train the judge of `darkroom train evaluate` on the built-in artwork. It never sees a generated picture."""
    from training.commands.run_pixel_networks import train_judge
    from training.commands.session import open_session
    from training.evaluation.judge_trainer import parse_widths

    parsed_widths = None if widths is None else ",".join(map(str, parse_widths(widths)))
    with open_session("judge", options) as session:
        raise typer.Exit(train_judge(session, cache, parsed_widths))
