"""The commands of `darkroom train` that train a network: their options. Each imports torch only when it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from training.commands.options import Cache, Flip, Pictures, SettingOption, TrainOptions, with_train_options

BaseModel = Annotated[
    str, typer.Option("--model", help="embedded, a diffusers folder, or a name on the model hub, in safetensors.")
]
RANK = "Rank of the LoRA.  [default: {}]"
PERCEPTUAL = SettingOption("perceptual", float, "Weight of the difference in the judge's features.", 0, 100)


@with_train_options(
    SettingOption(
        "keep_latents",
        bool,
        "Train only the decoder, so networks trained on these latents stay valid; default with --from.",
        flags="--keep-latents/--new-latents",
    ),
    SettingOption(
        "shape",
        str,
        "From scratch: compact (8×8×16 latents), deep (8×8×32) or wide (16×16×8); else compact.",
        metavar="NAME",
    ),
    SettingOption("kl", float, "Weight of the KL term; its first value if it adapts.", 1e-9, 0.1),
    SettingOption(
        "noise_to_signal", float, "Wanted in the latents; the KL term's weight adapts to it, 0: it stays.", 0, 10
    ),
    SettingOption("equivariance", float, "Share of batches with rotated, rescaled latents and pictures.", 0, 1),
    PERCEPTUAL,
    SettingOption("variants", int, "Variants of each drawing of the built-in artwork; else 4.", 1, 64),
)
def autoencoder(
    options: TrainOptions,
    overrides: dict[str, Any],
    source: Annotated[
        str, typer.Option("--from", metavar="MODEL", help="embedded, or a diffusers folder; by default from scratch.")
    ] = "",
    data: Pictures = None,
    cache: Cache = None,
) -> None:
    """Train the autoencoder, on the built-in artwork or on a folder of pictures."""
    from training.commands.run_pixel_networks import train_autoencoder
    from training.commands.session import open_session

    with open_session("autoencoder", options, data) as session:
        raise typer.Exit(train_autoencoder(session, source, data, cache, overrides))


@with_train_options(
    SettingOption(
        "widths",
        str,
        "Widths of the two new levels, from the pixels' end, or of all levels; else the autoencoder's outermost.",
        metavar="LIST",
    ),
    SettingOption("pictures", int, "Prepared before training, 220 kB each; else 3000.", 8, 20000),
    SettingOption("crop", int, "Latents a side that a step decodes; else 12.", 2, 64),
    SettingOption(
        "gan_weight", float, "Length of the discriminator's gradient, relative to the losses'; else 0.5.", 0, 10
    ),
    SettingOption("gan_from", float, "Share of the run after which the discriminator learns; else 0.3.", 0, 1),
    SettingOption("sharpness", float, "Weight of the difference in local gradient energy; else 0.5.", 0, 100),
    replace(PERCEPTUAL, help=f"{PERCEPTUAL.help[:-1]}; else 0.1."),
)
def decoder(
    options: TrainOptions,
    overrides: dict[str, Any],
    source: Annotated[
        str,
        typer.Option(
            "--from", metavar="MODEL", help="Whose latents it decodes: embedded, or a folder with unet and vae."
        ),
    ] = "embedded",
    cache: Cache = None,
) -> None:
    """Train a decoder that draws a model's pictures four times as large, on latents that its network denoised."""
    from training.commands.run_decoder import train_decoder
    from training.commands.session import open_session

    with open_session("decoder", options) as session:
        raise typer.Exit(train_decoder(session, source, cache, overrides))


@with_train_options()
def diffusion(
    options: TrainOptions,
    overrides: dict[str, Any],
    source: Annotated[
        str,
        typer.Option(
            "--from", metavar="MODEL", help="The starting model: embedded, a diffusers folder, or (diffusion) scratch."
        ),
    ] = "embedded",
    autoencoder: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            help="Train on the latents of this autoencoder; by default on those of the starting model's own.",
        ),
    ] = "",
    data: Pictures = None,
    cache: Cache = None,
    flip: Flip = False,
    focus: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Drawings of the built-in artwork to learn better, one a line: "label" or "label, style".',
        ),
    ] = None,
    focus_share: Annotated[
        float | None, typer.Option(min=0.01, max=0.99, help="Share of the pictures in --focus.  [default: 0.35]")
    ] = None,
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


@with_train_options(
    SettingOption("rank", int, RANK.format(8), 1, 1024),
    SettingOption("alpha", float, "The LoRA is scaled by alpha/rank.  [default: the rank]", 1e-3, 1e4),
    SettingOption("size", int, "Side of the pictures; by default the model's.", 16, 4096),
    SettingOption("precision", Literal["bf16", "fp32"], "Number format of the network.  [default: bf16]"),
)
def lora(
    options: TrainOptions,
    overrides: dict[str, Any],
    data: Annotated[Path, typer.Option("--data", metavar="FOLDER", help="Captioned pictures.")],
    model: BaseModel = "embedded",
    merge: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write the model with the LoRA merged.")
    ] = None,
    flip: Flip = False,
) -> None:
    """Train a LoRA on a folder of captioned pictures; the model itself stays as it is."""
    from training.commands.run_lora import train_lora
    from training.commands.session import open_session

    with open_session("lora", options, data) as session:
        raise typer.Exit(train_lora(session, model, data, merge, flip, overrides))


@with_train_options(
    SettingOption("guidance", float, "The teacher's classifier-free guidance.  [default: 4]", 1.0, 30.0),
    SettingOption(
        "interval",
        str,
        "In which part of the teacher's steps guidance holds.  [default: 0.3-0.8 for embedded, else 0-1]",
        metavar="FROM-TO",
    ),
    SettingOption("skip", int, "How many of its fifty steps the teacher takes as one.  [default: 5]", 1, 25),
    SettingOption("rank", int, RANK.format(32), 1, 1024),
)
def turbo(
    options: TrainOptions,
    overrides: dict[str, Any],
    model: BaseModel = "embedded",
    data: Pictures = None,
    cache: Cache = None,
    flip: Flip = False,
) -> None:
    """Distil a model into a LoRA that draws in four steps, on the built-in artwork or on captioned pictures."""
    from training.commands.run_lora import train_turbo
    from training.commands.session import open_session

    with open_session("turbo", options, data) as session:
        raise typer.Exit(train_turbo(session, model, data, cache, flip, overrides))


@with_train_options()
def upscaler(
    options: TrainOptions,
    overrides: dict[str, Any],
    source: Annotated[
        str, typer.Option("--from", metavar="FILE", help="embedded, or a safetensors file; by default from scratch.")
    ] = "",
    autoencoder: Annotated[
        str, typer.Option(metavar="MODEL", help="Whose blur it learns to repair: embedded, or a folder.")
    ] = "embedded",
    pictures: Annotated[
        int, typer.Option(min=8, max=20000, help="Prepared before training, 220 kB of memory each.")
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


@with_train_options(
    SettingOption(
        "widths",
        str,
        "Channels of each stage, for another architecture than the built-in judge: 48,96,192,320.",
        metavar="N,N,…",
    )
)
def judge(options: TrainOptions, overrides: dict[str, Any], cache: Cache = None) -> None:
    """Train the judge of `darkroom train evaluate` on the built-in artwork. It never sees a generated picture."""
    from training.commands.run_pixel_networks import train_judge
    from training.commands.session import open_session
    from training.evaluation.judge_trainer import parse_widths

    widths = overrides["widths"]
    parsed_widths = None if widths is None else ",".join(map(str, parse_widths(widths)))
    with open_session("judge", options) as session:
        raise typer.Exit(train_judge(session, cache, parsed_widths))
