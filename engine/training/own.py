"""The training data of the user's own pictures: latents and token states of every view, computed once.

Knows the frozen parts of any pipeline; knows nothing of the network.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine.training.latents import Cached, Encoded, encode, opened_or_written
from engine.training.models import Model
from engine.training.pictures.folder import Reading
from engine.training.pictures.pixels import Told
from engine.training.pictures.views import numbered, view

FORMAT = 1  # raise it when views change
PIXELS_AT_ONCE = 128 * 64 * 64
JUDGED = 256


def own_latents(
    folder: Path, reading: Reading, model: Model, *, side: int, seed: int, flip: bool,
    told: Told = lambda done, of: None,
) -> Cached:  # fmt: skip
    """Open or build the cache of these pictures under `folder`, for this model's autoencoder and text encoder."""
    key = f"{FORMAT}/{seed}/{side}/{flip}/{reading.fingerprint}/{model.fingerprint}"
    target = folder / f"own-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    pairs = numbered(reading.pictures, flip)
    made = _encoded(reading, model, pairs, side, seed, flip)
    cache = opened_or_written(target, made, model.states([""])[0], len(pairs), told)
    for other in set(folder.glob("own-*")) - {target}:  # caches of other pictures or another seed
        shutil.rmtree(other)
    return cache


def plain(cache: Cached, reading: Reading, flip: bool) -> Cached:
    """Select the first view of up to 256 pictures, evenly spaced, to evaluate a run on."""
    rows = [row for row, (_, number) in enumerate(numbered(reading.pictures, flip)) if number == 0]
    chosen = np.array(rows)[np.linspace(0, len(rows) - 1, min(len(rows), JUDGED)).astype(int)]
    captions = tuple(cache.captions[row] for row in chosen)
    return Cached(cache.latents[chosen], cache.states[chosen], cache.empty, captions)


def _encoded(
    reading: Reading, model: Model, pairs: list[tuple[int, int]], side: int, seed: int, flip: bool
) -> Iterator[Encoded]:
    batch = max(1, PIXELS_AT_ONCE // side**2)
    for start in range(0, len(pairs), batch):
        some = [(reading.pictures[index], number) for index, number in pairs[start : start + batch]]
        seen = np.stack([view(picture, number, side, seed, flip) for picture, number in some])
        listing = [{"key": picture.name, "caption": picture.caption} for picture, _ in some]
        states = model.states([picture.caption for picture, _ in some])
        yield Encoded(encode(model.pipeline.vae, seen), states, listing)
