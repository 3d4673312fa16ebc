"""What `darkroom train autoencoder` runs, on the built-in artwork or on pictures of one's own; torch is loaded here."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from engine.training.commands import builtin, own
from engine.training.commands.progress import shown
from engine.training.commands.session import Session
from engine.training.gan.autoencoder import Judge, Settings, Trainer, figures, fresh
from engine.training.gan.folding import fold, latent_scale
from engine.training.models import model_folder
from engine.training.pictures.folder import Picture, Reading
from engine.training.pictures.heldout import artwork_held_out
from engine.training.pictures.pixels import Pixels, of_artwork, of_pictures
from engine.training.pictures.views import numbered, view
from engine.training.run import Losses

FIGURES = "figures.json"


def run(session: Session, source: str, data: Path | None, cache: Path | None, given: dict[str, Any]) -> int:
    settings = session.settings(partial(_settings, bool(source)), **given)
    if settings.keep_latents and not source:
        raise ValueError("--keep-latents needs an autoencoder whose latents are kept: say --from embedded.")
    network = opened(source) if source else fresh(settings.seed)
    if data is None:
        session.belongs({"starting weights": source, "pictures": "the built-in artwork"})
        with shown("drawing variants") as tell:
            pictures = builtin.drawings(cache)
            train, held_out = of_artwork(pictures, settings.seed, told=lambda done, of: tell(done / of, ""))
    else:
        reading = own.read(session, data, captions=False)
        session.belongs({"starting weights": source, "pictures": reading.fingerprint})
        train, held_out = _own(reading, int(network.config["sample_size"]), settings.seed)
    before = figures(network, held_out) if source else {}
    trainer = Trainer(network, train, settings)
    return session.train(trainer, Judge(trainer, held_out), lambda: _write(session, trainer, held_out, before))


def opened(source: str) -> AutoencoderKL:
    """The autoencoder of a model's folder, or a folder that is one itself, fp32. Raises ValueError."""
    folder = model_folder(source)
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    try:
        return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source} holds no autoencoder of diffusers in safetensors.") from error


def split(pictures: tuple[Picture, ...]) -> tuple[list[Picture], list[Picture]]:
    """Those to learn from and those held out by their names; of very few, the first is held out."""
    held = [one for one in pictures if artwork_held_out(one.name)] or list(pictures[:1])
    seen = [one for one in pictures if one not in held]
    return seen or list(pictures), held


def _settings(started: bool, **given: Any) -> Settings:
    return Settings(**{"keep_latents": started, "rate": 5e-4 if started else 1e-3} | given)


def _own(reading: Reading, side: int, seed: int) -> tuple[Pixels, Pixels]:
    seen, held = split(reading.pictures)
    train = [view(seen[index], number, side, seed, flip=False) for index, number in numbered(seen, flip=False)]
    return of_pictures(train), of_pictures([view(one, 0, side, seed, flip=False) for one in held])


def _write(session: Session, trainer: Trainer, held_out: Pixels, before: Losses) -> None:
    """The averaged network in fp16, its scale folded into it where the latents are new, and its figures."""
    made = copy.deepcopy(trainer.average)
    if not trainer.settings.keep_latents:
        fold(made, *latent_scale(made, trainer.pixels))
        made.register_to_config(scaling_factor=1.0, shift_factor=None)
    torch.nn.Module.half(made)
    made.register_to_config(_name_or_path="")  # else a path of this machine
    made.save_pretrained(session.course.out, safe_serialization=True)
    torch.nn.Module.float(made)
    told = {"held_out": len(held_out), "before": before, "after": figures(made, held_out), "samples": trainer.samples}
    rounded = json.loads(json.dumps(told), parse_float=lambda number: float(np.round(float(number), 4)))
    (session.course.out / FIGURES).write_text(json.dumps(rounded, indent=1) + "\n")
