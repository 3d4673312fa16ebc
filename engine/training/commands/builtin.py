"""The built-in artwork for the training commands: fetched once, encoded once, kept in the cache folder."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from engine.families.embedded import NAME, WEIGHTS
from engine.training.commands.options import default_cache
from engine.training.commands.progress import shown
from engine.training.latents import Cached, TextStates, cached, text_states
from engine.training.models import refuse_incomplete
from engine.training.pictures import artwork
from engine.training.pictures.artwork import Artwork
from engine.training.pictures.variants import HELD_BACK, numbered

VALIDATED = 1024

Encoders = tuple[AutoencoderKL, TextStates]


def drawings(cache: Path | None, side: int = artwork.LARGEST_SIDE) -> list[Artwork]:
    """Load all artwork, at most `side` px, with npm if it is missing. Raises ValueError if it is unavailable."""
    try:
        return artwork.load((cache or default_cache()) / "npm", side=side)
    except (FileNotFoundError, subprocess.SubprocessError) as error:
        raise ValueError(
            f"The built-in artwork could not be fetched with npm ({type(error).__name__}): install npm, "
            "or train on pictures of your own with --data FOLDER."
        ) from error


def variants(cache: Path | None, encoders: Encoders, seed: int) -> tuple[Cached, Cached]:
    """Return latents and token states to train on, and the held-back ones."""
    pictures = drawings(cache)
    chosen = np.random.default_rng(seed).choice(len(pictures), VALIDATED, replace=False)
    wanted = (numbered(pictures), [(int(index), HELD_BACK) for index in np.sort(chosen)])
    both: list[Cached] = []
    for name, pairs in zip(("encoding variants", "encoding held-back variants"), wanted, strict=True):
        with shown(name) as tell:
            folder = cache or default_cache()
            made = cached(
                folder, pictures, pairs, encoders, seed=seed, told=lambda done, of, say=tell: say(done / of, "")
            )
        both.append(made)
    return both[0], both[1]


def encoders(weights: Path) -> Encoders:
    """Load the autoencoder of a folder in the diffusers layout, and MiniLM."""
    autoencoder = AutoencoderKL.from_pretrained(weights / "vae", torch_dtype=torch.float32, use_safetensors=True)
    autoencoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (diffusers hides its signature)
    return autoencoder.eval(), text_states()


def schedule(weights: Path) -> DDIMScheduler:
    """Load the noise schedule of a folder in the diffusers layout, as DDIM."""
    return cast(DDIMScheduler, DDIMScheduler.from_pretrained(weights / "scheduler"))


def weights_of(source: str) -> Path:
    """Return the folder of `embedded`, or a folder with unet, vae and scheduler. Raises ValueError."""
    folder = WEIGHTS if source == NAME else Path(source)
    refuse_incomplete(source, folder)
    return folder
