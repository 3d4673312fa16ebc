"""The training data of the user's own pictures: latents and token states of every view, computed once.

It uses the frozen parts of any pipeline, never the network.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np

from training.diffusion.latent_cache import EncodedBatch, LatentCache, encode_latents, open_or_write_cache
from training.diffusion.models import LoadedModel
from training.pictures.dataset import PictureDataset
from training.pictures.masked_pictures import ProgressCallback
from training.pictures.views import number_views, render_view

CACHE_FORMAT = 1  # raise it when views change
PIXELS_PER_BATCH = 128 * 64 * 64
EVALUATION_PICTURES = 256


def open_dataset_cache(
    folder: Path,
    dataset: PictureDataset,
    model: LoadedModel,
    *,
    side: int,
    seed: int,
    flip: bool,
    on_progress: ProgressCallback = lambda finished, total: None,
) -> LatentCache:
    """Open or build the cache of these pictures under `folder`, for this model's autoencoder and text encoder."""
    key = f"{CACHE_FORMAT}/{seed}/{side}/{flip}/{dataset.fingerprint}/{model.fingerprint}"
    cache_folder = folder / f"own-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    pairs = number_views(dataset.pictures, flip)
    batches = _encode_views(dataset, model, pairs, side, seed, flip)
    cache = open_or_write_cache(cache_folder, batches, model.encode_captions([""])[0], len(pairs), on_progress)
    for stale_folder in set(folder.glob("own-*")) - {cache_folder}:  # caches of other pictures or another seed
        shutil.rmtree(stale_folder)
    return cache


def select_evaluation_rows(cache: LatentCache, dataset: PictureDataset, flip: bool) -> LatentCache:
    """Select the first view of up to 256 pictures, evenly spaced, to evaluate a run on."""
    rows = [row for row, (_, number) in enumerate(number_views(dataset.pictures, flip)) if number == 0]
    places = np.linspace(0, len(rows) - 1, min(len(rows), EVALUATION_PICTURES)).astype(int)
    selected_rows = [rows[place] for place in cast(list[int], places.tolist())]
    captions = tuple(cache.captions[row] for row in selected_rows)
    return LatentCache(cache.latents[selected_rows], cache.states[selected_rows], cache.empty_states, captions)


def _encode_views(
    dataset: PictureDataset, model: LoadedModel, pairs: list[tuple[int, int]], side: int, seed: int, flip: bool
) -> Iterator[EncodedBatch]:
    batch_size = max(1, PIXELS_PER_BATCH // side**2)
    for start in range(0, len(pairs), batch_size):
        chunk = [(dataset.pictures[index], number) for index, number in pairs[start : start + batch_size]]
        views = np.stack([render_view(picture, number, side, seed, flip) for picture, number in chunk])
        listing = [{"key": picture.name, "caption": picture.caption} for picture, _ in chunk]
        states = model.encode_captions([picture.caption for picture, _ in chunk])
        yield EncodedBatch(encode_latents(model.pipeline.vae, views), states, listing)
