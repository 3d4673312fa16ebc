"""The `darkroom train measure` and `export` commands: measure a network's v-MSE; export a run's network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from training.commands.options import Cache

PartsModel = Annotated[
    str, typer.Option("--from", metavar="MODEL", help="The model of its other parts: embedded, or a diffusers folder.")
]


def measure(
    network: Annotated[Path, typer.Argument(help="A folder with a network's config.json and weights.")],
    source: PartsModel = "embedded",
    cache: Cache = None,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the fixed prompts there.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1)] = 0,
) -> None:
    """Print a network's v-MSE on the held-out variants; draw its sheet of the fixed prompts."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from engine.models.library_logging import silence_libraries
    from training.commands import builtin_artwork
    from training.diffusion.diffusion_trainer import DiffusionEvaluator, DiffusionSettings, DiffusionTrainer
    from training.diffusion.sampling import SHEET_PROMPTS, measure_v_mse

    weights = builtin_artwork.find_weights(source)
    with silence_libraries():
        vae, caption_encoder = builtin_artwork.load_encoders(weights)
    _, validation_cache = builtin_artwork.open_variants(cache, (vae, caption_encoder), seed)
    scheduler = builtin_artwork.load_schedule(weights)
    if not (network / "config.json").is_file():
        raise ValueError(f"{network} is not a diffusers network: it has no config.json.")
    with silence_libraries():
        loaded_network = UNet2DConditionModel.from_pretrained(
            network, torch_dtype=torch.float32, use_safetensors=True
        ).eval()
    error = measure_v_mse(loaded_network, validation_cache, scheduler.alphas_cumprod)
    typer.echo(json.dumps({"network": network.name, "v_mse": round(error, 4)}))
    if sheet:
        trainer = DiffusionTrainer(loaded_network, validation_cache, scheduler.alphas_cumprod, DiffusionSettings())
        DiffusionEvaluator(trainer, validation_cache, caption_encoder(SHEET_PROMPTS), vae, scheduler).draw_sheet(sheet)


def export(
    run: Annotated[Path, typer.Argument(help="The folder that was --out of a run.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where the network goes.")],
    source: PartsModel = "embedded",
    raw: Annotated[bool, typer.Option("--raw", help="The network itself instead of its moving average.")] = False,
) -> None:
    """Write a run's averaged network in fp16, sharded, in the diffusers layout; the run may still be going on."""
    from engine.models.library_logging import silence_libraries
    from training.commands import builtin_artwork
    from training.core import checkpoint
    from training.core.run import CHECKPOINT_FILE
    from training.diffusion.diffusion_trainer import load_network

    checkpoint_path = next(
        (path for path in (run / "run" / CHECKPOINT_FILE, run / CHECKPOINT_FILE) if path.is_file()), None
    )
    if checkpoint_path is None:
        raise ValueError(f"{run} holds no run: it has no checkpoint.")
    with silence_libraries():
        network = load_network(builtin_artwork.find_weights(source) / "unet")
    checkpoint.read_position(checkpoint_path)  # raises if it is incomplete
    tensors, _ = checkpoint.load(checkpoint_path)
    prefix = "network." if raw else "network:average."
    try:
        network.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        )
    except RuntimeError as error:
        raise ValueError(f"{run} holds no run of `darkroom train diffusion` from {source}.") from error
    with checkpoint.translate_write_errors(to):
        checkpoint.export_network(network, to)
    checkpoint.make_readable(to)
