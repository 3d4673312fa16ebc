"""Runs `darkroom train autoencoder`, on the built-in artwork or on the user's pictures. Imports torch."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors import SafetensorError

from engine.families.embedded import WEIGHTS
from engine.training import memory
from engine.training.commands import builtin, own
from engine.training.commands.progress import shown
from engine.training.commands.session import Session
from engine.training.evaluate.judge import open_judge
from engine.training.gan.autoencoder import Settings, Trainer
from engine.training.gan.autoencoder_judge import Judge, figures
from engine.training.gan.folding import fold, latent_scale
from engine.training.gan.perception import Perception
from engine.training.gan.shapes import SHAPES, fresh
from engine.training.models import contents, model_folder
from engine.training.pictures.folder import Picture, Reading
from engine.training.pictures.heldout import artwork_held_out
from engine.training.pictures.pixels import Pixels, of_artwork, of_pictures
from engine.training.pictures.views import numbered, view
from engine.training.run import Losses

FIGURES = "figures.json"
OF_LATENTS = {"kl", "noise_to_signal", "equivariance"}


def run(session: Session, source: str, data: Path | None, cache: Path | None, given: dict[str, Any]) -> int:
    settings = session.settings(partial(_settings, bool(source)), **given)
    if settings.keep_latents and not source:
        raise ValueError("--keep-latents needs an existing autoencoder: add --from embedded.")
    _refuse_unused(settings, data is not None, given)
    network = opened(source) if source else _fresh(settings)
    weights = contents(folder_of(source)) if source else "none"
    if data is None:
        session.belongs({"starting weights": weights, "pictures": "the built-in artwork"})
        pictures = builtin.drawings(cache)
        _check_memory(network, settings.batch, settings.variants * len(pictures), len(pictures) // 10)
        with shown("drawing variants") as tell:
            train, held_out = of_artwork(
                pictures, settings.seed, settings.variants, told=lambda done, of: tell(done / of, "")
            )
    else:
        reading = own.read(session, data, captions=False)
        session.belongs({"starting weights": weights, "pictures": reading.fingerprint})
        train, held_out = _own(reading, network, settings)
    before = figures(network, held_out) if source else {}
    trainer = Trainer(network, train, settings, open_perception() if settings.perceptual > 0 else None)
    return session.train(trainer, Judge(trainer, held_out), lambda: _write(session, trainer, held_out, before))


def opened(source: str) -> AutoencoderKL:
    """Load the autoencoder of a model's folder, or of a folder that is one, fp32. Raises ValueError."""
    try:
        return AutoencoderKL.from_pretrained(folder_of(source), torch_dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{source} holds no diffusers autoencoder in safetensors.") from error


def folder_of(source: str) -> Path:
    """Return the folder of a model's autoencoder; a folder may be one itself."""
    folder = model_folder(source)
    return folder / "vae" if (folder / "vae").is_dir() else folder


def split(pictures: tuple[Picture, ...]) -> tuple[list[Picture], list[Picture]]:
    """Split into training and held-out pictures by name; of very few pictures, hold out the first."""
    held = [one for one in pictures if artwork_held_out(one.name)] or list(pictures[:1])
    names = {one.name for one in held}
    return [one for one in pictures if one.name not in names] or list(pictures), held


def _settings(started: bool, **given: Any) -> Settings:
    """Build the settings. Raises ValueError for an unknown shape, or one given for an existing autoencoder."""
    shape = str(given.setdefault("shape", "" if started else "compact"))
    if started and shape:
        raise ValueError("--shape is for an autoencoder from scratch: leave out --from, or --shape.")
    if not started and shape not in SHAPES:
        raise ValueError(f"--shape takes {', '.join(SHAPES)}, and {shape[:40]!r} is none of them.")
    return Settings(**{"keep_latents": started, "rate": 5e-4 if started else 1e-3} | given)


def _refuse_unused(settings: Settings, own_pictures: bool, given: Mapping[str, Any]) -> None:
    """Raise ValueError if an option is given that this run does not use."""
    said = {name for name, value in given.items() if value is not None}
    if own_pictures and "variants" in said:
        raise ValueError("--variants is only for the built-in artwork: leave it out with --data.")
    if settings.keep_latents and (unused := sorted(said & OF_LATENTS)):
        raise ValueError(f"--{unused[0].replace('_', '-')} needs latents that change: add --new-latents.")


def _fresh(settings: Settings) -> AutoencoderKL:
    return fresh(settings.seed, SHAPES[settings.shape])


def open_perception() -> Perception:
    """Return the perceptual loss on the embedded judge's convolutional features."""
    return Perception(open_judge(WEIGHTS / "judge").network.stages)


def _check_memory(network: AutoencoderKL, batch: int, seen: int, held_out: int) -> None:
    """Raise ValueError if `seen` and `held_out` pictures and the training do not fit into memory."""
    side, count = int(network.config["sample_size"]), sum(one.numel() for one in network.parameters())
    each = memory.activations(dict(network.config), 1, side) / 2  # convolutions keep less than a U-Net's attention
    area = side * side
    memory.check(
        memory.of_pixels(count, each, batch, seen * area, held_out * area, "a smaller --batch or fewer pictures")
    )


def _own(reading: Reading, network: AutoencoderKL, settings: Settings) -> tuple[Pixels, Pixels]:
    seen, held = split(reading.pictures)
    side, seed, pairs = int(network.config["sample_size"]), settings.seed, numbered(seen, flip=False)
    _check_memory(network, settings.batch, len(pairs), len(held))
    train = [view(seen[index], number, side, seed, flip=False) for index, number in pairs]
    return of_pictures(train), of_pictures([view(one, 0, side, seed, flip=False) for one in held])


def _write(session: Session, trainer: Trainer, held_out: Pixels, before: Losses) -> None:
    """Write the averaged network in fp16 and its figures. New latents get their scale folded into the weights."""
    made = copy.deepcopy(trainer.average)
    if not trainer.settings.keep_latents:
        fold(made, *latent_scale(made, trainer.pixels))
        made.register_to_config(scaling_factor=1.0, shift_factor=None)
    torch.nn.Module.half(made)
    made.register_to_config(_name_or_path="")  # otherwise a path of this machine
    made.save_pretrained(session.course.out, safe_serialization=True)
    torch.nn.Module.float(made)
    told = {"held_out": len(held_out), "before": before, "after": figures(made, held_out), "samples": trainer.samples}
    rounded = json.loads(json.dumps(told), parse_float=lambda number: float(np.round(float(number), 4)))
    (session.course.out / FIGURES).write_text(json.dumps(rounded, indent=1) + "\n")
