"""One's own pictures as the network is fed with them: latents and token states of every view, computed once.

Knows the frozen parts of any pipeline; knows nothing of the network. Renamed into place when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.training.latents import Cached, encode, open_cache
from engine.training.models import Model
from engine.training.pictures.folder import Reading
from engine.training.pictures.views import numbered, view

FORMAT = 1  # raise it when views change
PIXELS_AT_ONCE = 128 * 64 * 64
JUDGED = 256


def own_latents(
    folder: Path, reading: Reading, model: Model, *, side: int, seed: int, flip: bool,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> Cached:  # fmt: skip
    """The cache of these pictures under `folder`, for this model's autoencoder and text encoder."""
    key = f"{FORMAT}/{seed}/{side}/{flip}/{reading.fingerprint}/{model.fingerprint}"
    target = folder / f"own-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not target.exists():
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(partial, reading, model, numbered(reading.pictures, flip), (side, seed, flip), told)
        partial.rename(target)
        for other in set(folder.glob("own-*")) - {target}:  # of pictures or a seed that the run no longer has
            shutil.rmtree(other)
    return open_cache(target)


def plain(cache: Cached, reading: Reading, flip: bool) -> Cached:
    """The first view of up to 256 pictures, evenly chosen: what a run is looked at with."""
    rows = [row for row, (_, number) in enumerate(numbered(reading.pictures, flip)) if number == 0]
    chosen = np.array(rows)[np.linspace(0, len(rows) - 1, min(len(rows), JUDGED)).astype(int)]
    captions = tuple(cache.captions[row] for row in chosen)
    return Cached(cache.latents[chosen], cache.states[chosen], cache.empty, captions)


def _write(
    folder: Path, reading: Reading, model: Model, pairs: list[tuple[int, int]], how: tuple[int, int, bool],
    told: Callable[[int, int], None],
) -> None:  # fmt: skip
    side, seed, flip = how
    pictures, vae = reading.pictures, model.pipeline.vae
    empty = model.states([""])[0].numpy()
    places = side // int(model.pipeline.vae_scale_factor)
    shape = (len(pairs), int(vae.config.latent_channels), places, places)
    latents = np.lib.format.open_memmap(folder / "latents.npy", "w+", np.float16, shape)
    states = np.lib.format.open_memmap(folder / "states.npy", "w+", np.float16, (len(pairs), *empty.shape))
    batch = max(1, PIXELS_AT_ONCE // side**2)
    for start in range(0, len(pairs), batch):
        some = pairs[start : start + batch]
        span = slice(start, start + len(some))
        seen = [view(pictures[index], number, side, seed, flip) for index, number in some]
        latents[span] = encode(vae, np.stack(seen)).numpy()
        states[span] = model.states([pictures[index].caption for index, _ in some]).numpy()
        told(span.stop, len(pairs))
    latents.flush()
    states.flush()
    np.save(folder / "empty.npy", empty)
    listing = [{"key": pictures[index].name, "caption": pictures[index].caption} for index, _ in pairs]
    (folder / "variants.json").write_text(json.dumps(listing))
