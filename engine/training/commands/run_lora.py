"""Runs `darkroom train lora`: opens the model, trains the LoRA, writes it, and merges it with --merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from peft.utils.save_and_load import get_peft_model_state_dict

from engine.device import best
from engine.training import checkpoint, memory
from engine.training.commands import own, run_folder
from engine.training.commands.progress import say
from engine.training.commands.session import Session
from engine.training.lora import Judge, Settings, Trainer
from engine.training.models import INDEX, Model, model_folder, open_model, stored, write_model
from engine.training.own import plain
from engine.training.pictures.folder import Reading

LARGE, FEW = 128, 4  # side in pixels above which a sample sheet has few pictures


def train(session: Session, source: str, data: Path, merge: Path | None, flip: bool, given: dict[str, Any]) -> int:
    """Train and return the exit code. Raises ValueError or `Unfit` with what is wrong."""
    _refuse_merging(session, merge)
    _check_memory(session, model_folder(source), given)
    reading = own.read(session, data)
    model = open_model(source)
    settings = session.settings(lambda **said: _settings(model, said), **given)
    session.belongs({"model": model.fingerprint, "pictures": reading.fingerprint, "--flip": str(flip)})
    trainer, judge = _opened(session, model, settings, reading, flip)
    code = session.train(trainer, judge, lambda: write_lora(model.pipeline.unet, session.course.out), minutes=2.0)
    if code == 0 and merge is not None:
        _merge(session, model, trainer, merge)
    return code


def _check_memory(session: Session, folder: Path, given: dict[str, Any]) -> None:
    kept = session.position["settings"] if session.position else {}
    asked = {
        "batch": Settings.batch,
        "rank": Settings.rank,
        **kept,
        **{name: value for name, value in given.items() if value is not None},
    }
    if (folder / "unet").is_dir() and (folder / "vae").is_dir():  # otherwise `open_model` reports what is missing
        memory.check(memory.of_lora(folder, asked["batch"], asked["rank"], asked.get("size")))


def _opened(session: Session, model: Model, settings: Settings, reading: Reading, flip: bool) -> tuple[Trainer, Judge]:
    scheduler = cast(DDIMScheduler, DDIMScheduler.from_config(model.pipeline.scheduler.config))
    cache = own.latents(session, reading, model, side=settings.size, seed=settings.seed, flip=flip)
    said = own.prompts(reading)[: FEW if settings.size > LARGE else None]
    prompts = model.states(said)
    network = torch.nn.Module.to(model.pipeline.unet, best())
    trainer = Trainer(network, cache, scheduler, settings)
    return trainer, Judge(trainer, plain(cache, reading, flip), prompts, model.pipeline.vae, scheduler)


def _settings(model: Model, said: dict[str, Any]) -> Settings:
    """Build the settings; defaults depend on the model and on the rank."""
    step = int(model.pipeline.vae_scale_factor) * 2 ** (len(model.pipeline.unet.config.block_out_channels) - 1)
    if (size := said.get("size", model.side)) % step:
        raise ValueError(f"--size {size} does not suit this model: it takes multiples of {step}.")
    return Settings(**{"size": size, "alpha": float(said.get("rank", Settings.rank))} | said)


def write_lora(network: Any, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors` with diffusers, for `pipeline.load_lora_weights(folder)`."""
    StableDiffusionPipeline.save_lora_weights(
        str(folder),
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(network)),
        safe_serialization=True,
        **_collate_lora_metadata({"unet": network}),
    )


def _refuse_merging(session: Session, merge: Path | None) -> None:
    if merge is None or not merge.exists() or str(merge.resolve()) == _merged(session).get("folder"):
        return
    if not merge.is_dir() or any(merge.iterdir()):
        raise ValueError(f"--merge takes a new folder, and there is something at {merge} already.")


def _merge(session: Session, model: Model, trainer: Trainer, merge: Path) -> None:
    now = {"folder": str(merge.resolve()), "steps": trainer.steps}
    if _merged(session) == now and (merge / INDEX).is_file():
        say(f"{merge} already has this model with the LoRA merged.")
        return
    checkpoint.write_whole(session.folder / run_folder.MERGED, json.dumps(now))
    network: Any = torch.nn.Module.to(trainer.network, "cpu")
    network.fuse_lora()
    network.unload_lora()
    with checkpoint.writing(merge):
        write_model(model.pipeline, stored(model.folder), merge, session.folder / run_folder.WHOLE)
    checkpoint.readable(merge)
    say(f"{merge} is the model with the LoRA merged.")


def _merged(session: Session) -> dict[str, Any]:
    return run_folder.read_object(session.folder / run_folder.MERGED) if session.position else {}
