"""Runs `darkroom train diffusion`, on the built-in artwork or on the user's pictures. Imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from engine.device import best
from engine.families.embedded import NAME
from engine.families.revision import fingerprint
from engine.training import memory
from engine.training.commands import builtin, own
from engine.training.commands.progress import say
from engine.training.commands.run_folder import WHOLE
from engine.training.commands.session import Session
from engine.training.diffusion import SCRATCH, Judge, Settings, Trainer, fresh_network, graft, open_network
from engine.training.latents import Cached
from engine.training.models import Model, model_folder, open_model, stored, write_model
from engine.training.own import plain
from engine.training.pictures.variants import diet
from engine.training.validate import PROMPTS

SMALL_BATCH, GENTLE_RATE = 16, 1e-4  # Muon's step size does not depend on the batch

POOLED_BY = 64  # attention heads with which diffusers pools the text for the time embedding


def on_artwork(session: Session, source: str, cache: Path | None, given: dict[str, float | None]) -> int:
    settings = session.settings(Settings, **given)
    parts = _parts(source)
    weights = builtin.weights_of(parts)
    memory.check(memory.of_diffusion(weights, settings.batch))
    session.belongs(
        {"starting weights": _start(source, fingerprint(weights)), "pictures": f"the built-in artwork, {diet()}"}
    )
    vae, text = builtin.encoders(weights)
    train, held_back = builtin.variants(cache, (vae, text), settings.seed)
    scheduler = builtin.schedule(weights)
    unet = weights / "unet"
    network = fresh_network(unet, settings.seed) if source == SCRATCH else open_network(unet)
    trainer = _trainer(network, train, scheduler, settings)
    judge = Judge(trainer, held_back, text(PROMPTS), vae, scheduler)
    return session.train(trainer, judge, lambda: _write(session, open_model(parts), trainer))


def on_own(session: Session, source: str, data: Path, flip: bool, given: dict[str, float | None]) -> int:
    settings = session.settings(Settings if source == SCRATCH else _gently, **given)
    parts = _parts(source)
    if (folder := model_folder(parts)) and (folder / "unet").is_dir():  # otherwise `open_model` reports what is missing
        memory.check(memory.of_diffusion(folder, settings.batch))
    reading = own.read(session, data)
    model = open_model(parts)
    start = _start(source, model.fingerprint)
    session.belongs({"starting weights": start, "pictures": reading.fingerprint, "--flip": str(flip)})
    scheduler = _schedule(model)
    train = own.latents(session, reading, model, side=model.side, seed=settings.seed, flip=flip)
    model.pipeline.unet = _network(model, source, settings.seed)
    trainer = _trainer(model.pipeline.unet, train, scheduler, settings)
    prompts = model.states(own.prompts(reading))
    judge = Judge(trainer, plain(train, reading, flip), prompts, model.pipeline.vae, scheduler, "v_mse_of_pictures")
    code = session.train(trainer, judge, lambda: _write(session, model, trainer), minutes=1.0)
    if code == 0:
        say(f'Draw with it: darkroom imagine "{reading.pictures[0].caption}" --model {session.course.out}')
    return code


def _trainer(network: UNet2DConditionModel, train: Cached, scheduler: DDIMScheduler, settings: Settings) -> Trainer:
    torch.nn.Module.to(network, best())
    return Trainer(network, train, scheduler.alphas_cumprod, settings)


def _parts(source: str) -> str:
    """Return the model of the other parts (autoencoder, text encoder, schedule): the embedded one for scratch."""
    return NAME if source == SCRATCH else source


def _start(source: str, fingerprint: str) -> str:
    return f"{SCRATCH} beside {fingerprint}" if source == SCRATCH else fingerprint


def _network(model: Model, source: str, seed: int) -> UNet2DConditionModel:
    if source == SCRATCH:
        return fresh_network(model.folder / "unet", seed)
    torch.manual_seed(seed)  # initial weights of the added layers
    network = model.pipeline.unet
    return graft(network) if network.config.cross_attention_dim % POOLED_BY == 0 else network


def _gently(**given: Any) -> Settings:
    """Return settings for few pictures, seen often: small steps, so that the network forgets little."""
    return Settings(**{"rate": GENTLE_RATE, "batch": SMALL_BATCH, "warm": 20} | given)


def _schedule(model: Model) -> DDIMScheduler:
    config = model.pipeline.scheduler.config
    if config.prediction_type != "v_prediction":
        raise ValueError(
            "This model does not predict v, and only such models are trained here: use `darkroom train lora`."
        )
    return cast(DDIMScheduler, DDIMScheduler.from_config(config))


def _write(session: Session, model: Model, trainer: Trainer) -> None:
    """Write the averaged network in fp16 with the model's other parts in their stored number formats."""
    model.pipeline.unet = trainer.average
    dtypes = {**stored(model.folder), "unet": torch.float16}
    write_model(model.pipeline, dtypes, session.course.out, session.folder / WHOLE)
