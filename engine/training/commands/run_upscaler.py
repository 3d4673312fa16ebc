"""Runs `darkroom train upscaler`, on the built-in artwork or on the user's pictures. Imports torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import nn

from engine.super_resolver import BUILT_IN
from engine.training import memory
from engine.training.commands import builtin, own
from engine.training.commands.progress import shown
from engine.training.commands.run_autoencoder import FIGURES, folder_of, opened, split
from engine.training.commands.session import Session
from engine.training.gan import pairs
from engine.training.gan.pairs import SIDE, Pairs
from engine.training.gan.upscaler import Settings, Trainer, export, fresh, load
from engine.training.gan.upscaler_judge import Judge, figures
from engine.training.models import contents
from engine.training.pictures.folder import Picture
from engine.training.pictures.heldout import artwork_held_out
from engine.training.pictures.picture_file import decode

HELD_OUT = 48
LOSSES = 6000  # bytes that losses and discriminator keep for a pixel of the small picture
RESULT = "model.safetensors"


@dataclass(frozen=True)
class Sources:
    """The command's arguments for starting weights and training data."""

    weights: str
    autoencoder: str
    data: Path | None
    cache: Path | None
    pictures: int


@dataclass(frozen=True)
class Large:
    """Training pictures and `count` held-out ones, and the fingerprint of both."""

    seen: Iterator[np.ndarray]
    held_out: Iterator[np.ndarray]
    count: int
    fingerprint: str


class Files(Sequence[Image.Image]):
    """Decodes pictures on access: a camera's photos in full size do not fit into memory."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...

    @overload
    def __getitem__(self, index: slice) -> Files: ...

    def __getitem__(self, index: int | slice) -> Image.Image | Files:
        return Files(self.pictures[index]) if isinstance(index, slice) else decode(self.pictures[index].path).pixels


def run(session: Session, sources: Sources, given: dict[str, Any]) -> int:
    settings = session.settings(Settings, **given)
    begun = _weights(sources.weights) if sources.weights else None
    network = load(begun) if begun else fresh(settings.seed)
    _check_memory(network, settings, sources.pictures)
    autoencoder = opened(sources.autoencoder).eval()
    large = _large(session, sources, settings.seed)
    session.belongs({
        "starting weights": contents(begun) if begun else "none", "pictures": large.fingerprint,
        "--pictures": str(sources.pictures), "--autoencoder": contents(folder_of(sources.autoencoder)),
    })  # fmt: skip
    train = _made(large.seen, sources.pictures, autoencoder, settings.seed, pairs.CHARTS)
    held_out = _made(large.held_out, large.count, autoencoder, settings.seed + 1, 0.0)
    trainer = Trainer(network, train, settings)
    return session.train(
        trainer, Judge(trainer, held_out), lambda: _write(session, trainer, held_out, sources.data is None)
    )


def _weights(source: str) -> Path:
    return BUILT_IN if source == "embedded" else Path(source)


def _check_memory(network: nn.Module, settings: Settings, pictures: int) -> None:
    parameters = list(network.parameters())
    channels = sum(one.numel() for one in parameters if one.ndim == 1)  # of every layer and its activation
    each = (4 * channels + LOSSES) * settings.crop**2
    count, seen = sum(one.numel() for one in parameters), (pictures + HELD_OUT) * SIDE**2
    memory.check(memory.of_pixels(count, each, settings.batch, seen, HELD_OUT * SIDE**2, "fewer --pictures"))


def _large(session: Session, sources: Sources, seed: int) -> Large:
    chances = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    if sources.data is None:
        drawn = builtin.drawings(sources.cache, SIDE)
        both = [[art for art in drawn if artwork_held_out(art.key) == kept] for kept in (False, True)]
        counts = sources.pictures, HELD_OUT
        seen, held = (pairs.of_artwork(*each) for each in zip(both, counts, chances, strict=True))
        return Large(seen, held, HELD_OUT, "the built-in artwork")
    reading = own.read(session, sources.data, captions=False)
    files = [Files(some) for some in split(reading.pictures)]
    counts = sources.pictures, min(HELD_OUT, len(files[1]))
    seen, held = (pairs.squares(*each) for each in zip(files, counts, chances, strict=True))
    return Large(seen, held, counts[1], reading.fingerprint)


def _made(large: Iterator[np.ndarray], count: int, autoencoder: AutoencoderKL, seed: int, charts: float) -> Pairs:
    with shown("scaling pictures down") as tell:
        return pairs.pairs(large, count, autoencoder, seed, charts, lambda done, of: tell(done / of, ""))


def _write(session: Session, trainer: Trainer, held_out: Pairs, flat: bool) -> None:
    """Write the averaged network in fp16 for spandrel, and its figures."""
    target = session.course.out / RESULT
    export(trainer.average, target, flat=flat)
    found = figures(load(target), held_out)
    told = {"held_out": len(held_out), **{name: round(figure, 4) for name, figure in found.items()}}
    (session.course.out / FIGURES).write_text(json.dumps({**told, "samples": trainer.samples}, indent=1) + "\n")
