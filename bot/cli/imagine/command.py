"""`darkroom imagine`: the options of its command line; `bot.cli.imagine.runner` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bot.cli.options import OFFLOAD_HELP, QUANTIZE_HELP, QUANTIZE_TEXT_HELP, AsJson, Data

Prompt = Annotated[list[str] | None, typer.Argument(help="What to draw; it may contain flags, as in Discord.")]
Steps = Annotated[int | None, typer.Option(help="Sampler steps, 1 to 1000.")]
Evaluations = Annotated[
    str | None, typer.Option(metavar="N|all|auto", help="At how many of the steps the network is asked.")
]
Draft = Annotated[bool, typer.Option("--draft", help="Ask the network 25 times only: a first look, less fine.")]
Sampler = Annotated[str | None, typer.Option(help="ddpm, euler, dpmpp_2m, …, or as in 'DPM++ 2M Karras'.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same bytes.")]
Guidance = Annotated[float | None, typer.Option(help="How closely to follow the prompt, 1 to 30.")]
Interval = Annotated[
    str | None, typer.Option(metavar="FROM-TO", help="In which part of the steps guidance holds, as in 0.2-0.8.")
]
Lora = Annotated[
    list[str] | None, typer.Option(metavar="NAME[:WEIGHT]", help="A LoRA for the model; up to four times.")
]
Control = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[:SCALE][:FROM-TO][:FILE]",
        help="Follow a picture's shapes, as in canny:sketch.png; without a file those of --image. Up to three times.",
    ),
]
Reference = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME:]FILE[:SCALE]",
        help="Take over a picture's content or style, as in face.png:0.5; up to four times.",
    ),
]
Vae = Annotated[str | None, typer.Option(metavar="NAME", help="An autoencoder in place of the model's own.")]
ClipSkip = Annotated[int | None, typer.Option(help="The layer of CLIP that is read, from its end; 1 is all layers.")]
Count = Annotated[int | None, typer.Option(help="How many pictures, 1 to 4.")]
Best = Annotated[bool, typer.Option("--best", help="Draw twice as many, and show those nearest to the prompt.")]
AspectRatio = Annotated[str | None, typer.Option(metavar="W:H", help="The shape of the picture.")]
NegativePrompt = Annotated[str | None, typer.Option(help="What to steer away from.")]
InitImages = Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A picture to begin with.")]
Strength = Annotated[float | None, typer.Option(help="How much of it is drawn anew, 0.05 to 1.")]
Edit = Annotated[bool, typer.Option("--edit", help="Change each --image as the words say, with a model that can.")]
Mask = Annotated[Path | None, typer.Option(metavar="FILE", help="White where it is drawn anew.")]
Blend = Annotated[bool, typer.Option("--blend", help="The files that follow are blended: two to five.")]
Branch = Annotated[str | None, typer.Option(metavar="JOB[/N]:STEP", help="Branch off an older job at that step.")]
Tile = Annotated[bool, typer.Option("--tile", help="Make opposite edges fit, for tiling.")]
Raw = Annotated[bool, typer.Option("--raw", help="Add none of the model's styles to the prompt.")]
Mix = Annotated[bool, typer.Option("--mix", help="Mix the weighted parts (::) into one text.")]
Stop = Annotated[float | None, typer.Option(help="End at so many percent of the steps, 10 to 100.")]
Chaos = Annotated[float | None, typer.Option(help="How much guidance differs between the pictures, 0 to 100.")]
Quality = Annotated[float | None, typer.Option(help="Multiply the usual steps by this, 0.25 to 4.")]
Walk = Annotated[
    str | None, typer.Option(metavar="WORDS", help="Interpolate to this prompt: pictures on the way, and their film.")
]
Frames = Annotated[int | None, typer.Option(help="How many pictures a walk has, 4 to 16.")]
Fast = Annotated[bool, typer.Option("--fast", help="30 steps of DPM++ 2M, or the model's own fast setting.")]
Turbo = Annotated[bool, typer.Option("--turbo", help="4 steps without guidance, if the model has a LoRA for that.")]
Model = Annotated[str | None, typer.Option(help="Model folder or name.")]
Quantize = Annotated[str, typer.Option(metavar="HOW", help=QUANTIZE_HELP)]
QuantizeText = Annotated[str, typer.Option(metavar="HOW", help=QUANTIZE_TEXT_HELP)]
Offload = Annotated[str, typer.Option(metavar="WHAT", help=OFFLOAD_HELP)]
OutputFolder = Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")]
Film = Annotated[bool, typer.Option("--film", help="Also write the film of how they developed.")]


def imagine(
    prompt: Prompt = None,
    steps: Steps = None,
    evaluations: Evaluations = None,
    draft: Draft = False,
    sampler: Sampler = None,
    seed: Seed = None,
    guidance: Guidance = None,
    interval: Interval = None,
    lora: Lora = None,
    control: Control = None,
    reference: Reference = None,
    vae: Vae = None,
    clip_skip: ClipSkip = None,
    count: Count = None,
    best: Best = False,
    ar: AspectRatio = None,
    no: NegativePrompt = None,
    image: InitImages = None,
    strength: Strength = None,
    edit: Edit = False,
    mask: Mask = None,
    blend: Blend = False,
    branch: Branch = None,
    tile: Tile = False,
    mix: Mix = False,
    stop: Stop = None,
    chaos: Chaos = None,
    raw: Raw = False,
    quality: Quality = None,
    walk: Walk = None,
    frames: Frames = None,
    fast: Fast = False,
    turbo: Turbo = False,
    model: Model = None,
    out: OutputFolder = Path(),
    film: Film = False,
    as_json: AsJson = False,
    quantize: Quantize = "",
    quantize_text: QuantizeText = "",
    offload: Offload = "",
    data: Data = None,
) -> None:
    """Draw one prompt on this machine: in the running `darkroom up`, otherwise in this process."""
    from bot.app.settings import load_settings
    from bot.cli.imagine.job_inputs import split_arguments, split_controls, split_references
    from bot.cli.imagine.runner import ImagineRequest, run_imagine
    from bot.cli.options import EngineOptions

    controls = split_controls(control or (), image or ())
    references = split_references(reference or ())
    prompt_text, inputs = split_arguments(prompt or (), image or (), mask, blend, branch, controls[1], references[1])
    options: dict[str, object] = {
        "steps": steps,
        "evaluations": evaluations,
        "draft": draft or None,
        "sampler": sampler,
        "seed": seed,
        "guidance": guidance,
        "interval": interval,
        "lora": lora or None,
        "control": controls[0] or None,
        "reference": references[0] or None,
        "vae": vae,
        "clip_skip": clip_skip,
        "count": count,
        "ar": ar,
        "negative": no,
        "fast": fast or None,
        "model": model,
        "strength": strength,
        "edit": edit or None,
        "stop_at": stop,
        "tile": tile or None,
        "mix": mix or None,
        "chaos": chaos,
        "raw": raw or None,
        "best": best or None,
        "turbo": turbo or None,
        "quality": quality,
        "walk": walk,
        "frames": frames,
    }
    given_options = {name: value for name, value in options.items() if value is not None}
    engine = EngineOptions(quantize=quantize, quantize_text=quantize_text, offload=offload)
    request = ImagineRequest(prompt_text, given_options, out, film, as_json, inputs, engine)
    raise typer.Exit(run_imagine(request, load_settings(data)))
