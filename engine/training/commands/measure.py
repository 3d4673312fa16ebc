"""The `darkroom train measure` and `export` commands: measure a network's v-MSE; export a run's network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from engine.training.commands.options import Cache

Beside = Annotated[
    str,
    typer.Option("--from", metavar="MODEL", help="The model of its other parts: embedded, or a diffusers folder."),
]


def measure(
    network: Annotated[Path, typer.Argument(help="A folder with a network's config.json and weights.")],
    source: Beside = "embedded",
    cache: Cache = None,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the fixed prompts there.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1)] = 0,
) -> None:
    """Print a network's v-MSE on the held-back variants; draw its sheet of the fixed prompts."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from engine.families.quiet import quiet
    from engine.training.commands import builtin
    from engine.training.diffusion import Judge, Settings, Trainer
    from engine.training.validate import PROMPTS, v_mse

    weights = builtin.weights_of(source)
    with quiet():
        vae, text = builtin.encoders(weights)
    _, held_back = builtin.variants(cache, (vae, text), seed)
    scheduler = builtin.schedule(weights)
    if not (network / "config.json").is_file():
        raise ValueError(f"{network} is not a diffusers network: it has no config.json.")
    with quiet():
        opened = UNet2DConditionModel.from_pretrained(network, torch_dtype=torch.float32, use_safetensors=True).eval()
    wrong = v_mse(opened, held_back, scheduler.alphas_cumprod)
    typer.echo(json.dumps({"network": network.name, "v_mse": round(wrong, 4)}))
    if sheet:
        trainer = Trainer(opened, held_back, scheduler.alphas_cumprod, Settings())
        Judge(trainer, held_back, text(PROMPTS), vae, scheduler).sheet(sheet)


def export(
    run: Annotated[Path, typer.Argument(help="The folder that was --out of a run.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where the network goes.")],
    source: Beside = "embedded",
    raw: Annotated[bool, typer.Option("--raw", help="The network itself instead of its moving average.")] = False,
) -> None:
    """Write a run's averaged network in fp16, sharded, in the diffusers layout; the run may still be going on."""
    from engine.families.quiet import quiet
    from engine.training import checkpoint
    from engine.training.commands import builtin
    from engine.training.diffusion import open_network
    from engine.training.run import CHECKPOINT

    kept = next((path for path in (run / "run" / CHECKPOINT, run / CHECKPOINT) if path.is_file()), None)
    if kept is None:
        raise ValueError(f"{run} holds no run: it has no checkpoint.")
    with quiet():
        network = open_network(builtin.weights_of(source) / "unet")
    checkpoint.position(kept)  # raises if it is incomplete
    tensors, _ = checkpoint.load(kept)
    prefix = "network." if raw else "network:average."
    try:
        network.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    except RuntimeError as error:
        raise ValueError(f"{run} holds no run of `darkroom train diffusion` from {source}.") from error
    with checkpoint.writing(to):
        checkpoint.export(network, to)
    checkpoint.readable(to)
