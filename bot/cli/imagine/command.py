"""`darkroom imagine`: the options of its command line; `bot.cli.imagine.runner` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bot.cli.options import AsJson, Data, OffloadOption, QuantizeOption, QuantizeTextOption

FILE_OPTIONS = ("prompt", "control", "reference", "image", "mask", "blend", "branch")
RUN_OPTIONS = ("out", "film", "as_json", "quantize", "quantize_text", "offload", "data")
PROMPT_NAMES = {"no": "negative", "stop": "stop_at"}  # of the other options, where `bot.prompt.parse` has another name


def imagine(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="What to draw; it may contain flags, as in Discord.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps, 1 to 1000.")] = None,
    evaluations: Annotated[
        str | None, typer.Option(metavar="N|all|auto", help="At how many of the steps the network is asked.")
    ] = None,
    draft: Annotated[
        bool, typer.Option("--draft", help="Ask the network 25 times only: a first look, less fine.")
    ] = False,
    sampler: Annotated[str | None, typer.Option(help="ddpm, euler, dpmpp_2m, …, or as in 'DPM++ 2M Karras'.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same bytes.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt, 1 to 30.")] = None,
    interval: Annotated[
        str | None, typer.Option(metavar="FROM-TO", help="In which part of the steps guidance holds, as in 0.2-0.8.")
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="NAME[:WEIGHT]", help="A LoRA for the model; up to four times.")
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SCALE][:FROM-TO][:FILE]",
            help="Follow a picture's shapes, as in canny:sketch.png; without a file those of --image. Up to three "
            "times.",
        ),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME:]FILE[:SCALE]",
            help="Take over a picture's content or style, as in face.png:0.5; up to four times.",
        ),
    ] = None,
    vae: Annotated[str | None, typer.Option(metavar="NAME", help="An autoencoder in place of the model's own.")] = None,
    clip_skip: Annotated[
        int | None, typer.Option(help="The layer of CLIP that is read, from its end; 1 is all layers.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="How many pictures, 1 to 4.")] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Draw twice as many, and show those nearest to the prompt.")
    ] = False,
    ar: Annotated[str | None, typer.Option(metavar="W:H", help="The shape of the picture.")] = None,
    no: Annotated[str | None, typer.Option(help="What to steer away from.")] = None,
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A picture to begin with.")] = None,
    strength: Annotated[float | None, typer.Option(help="How much of it is drawn anew, 0.05 to 1.")] = None,
    edit: Annotated[
        bool, typer.Option("--edit", help="Change each --image as the words say, with a model that can.")
    ] = False,
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help="White where it is drawn anew.")] = None,
    blend: Annotated[bool, typer.Option("--blend", help="The files that follow are blended: two to five.")] = False,
    branch: Annotated[
        str | None, typer.Option(metavar="JOB[/N]:STEP", help="Branch off an older job at that step.")
    ] = None,
    tile: Annotated[bool, typer.Option("--tile", help="Make opposite edges fit, for tiling.")] = False,
    mix: Annotated[bool, typer.Option("--mix", help="Mix the weighted parts (::) into one text.")] = False,
    stop: Annotated[float | None, typer.Option(help="End at so many percent of the steps, 10 to 100.")] = None,
    chaos: Annotated[
        float | None, typer.Option(help="How much guidance differs between the pictures, 0 to 100.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Add none of the model's styles to the prompt.")] = False,
    quality: Annotated[float | None, typer.Option(help="Multiply the usual steps by this, 0.25 to 4.")] = None,
    walk: Annotated[
        str | None,
        typer.Option(metavar="WORDS", help="Interpolate to this prompt: pictures on the way, and their film."),
    ] = None,
    frames: Annotated[int | None, typer.Option(help="How many pictures a walk has, 4 to 16.")] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="30 steps of DPM++ 2M, or the model's own fast setting.")
    ] = False,
    turbo: Annotated[
        bool, typer.Option("--turbo", help="4 steps without guidance, if the model has a LoRA for that.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Model folder or name.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = Path(),
    film: Annotated[bool, typer.Option("--film", help="Also write the film of how they developed.")] = False,
    as_json: AsJson = False,
    quantize: QuantizeOption = "",
    quantize_text: QuantizeTextOption = "",
    offload: OffloadOption = "",
    data: Data = None,
) -> None:
    """Draw one prompt on this machine: in the running `darkroom up`, otherwise in this process."""
    given = locals()
    from bot.app.settings import load_settings
    from bot.cli.imagine.job_inputs import ImagineRequest, split_arguments, split_controls, split_references
    from bot.cli.imagine.runner import run_imagine
    from bot.cli.options import EngineOptions, list_given

    controls, control_files = split_controls(control or (), image or ())
    references, reference_files = split_references(reference or ())
    text, inputs = split_arguments(prompt or (), image or (), mask, blend, branch, control_files, reference_files)
    options = {PROMPT_NAMES.get(name, name): given[name] for name in given if name not in FILE_OPTIONS + RUN_OPTIONS}
    options = list_given(options | {"control": controls, "reference": references})
    engine = EngineOptions(quantize=quantize, quantize_text=quantize_text, offload=offload)
    request = ImagineRequest(text, options, out, film, as_json, inputs, engine)
    raise typer.Exit(run_imagine(request, load_settings(data)))
