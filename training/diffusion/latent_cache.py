"""The training data in fp16 files, computed once: latents of every variant or view, token states of every caption.

It uses the frozen parts of a model (our autoencoder and MiniLM, or any pipeline's), never the network. The files are
memory-mapped, so a step costs only the network. A cache is renamed into place at the end, so no run uses an incomplete
one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from engine.models.judge import as_images
from engine.models.text_embedder import TOKENS, load_text_encoder
from training.core.learner import mixed_precision, spread_rows
from training.diffusion.models import LoadedModel
from training.pictures.artwork import Artwork
from training.pictures.dataset import PictureDataset, number_views, render_view
from training.pictures.masked_pictures import ProgressCallback
from training.pictures.variants import render_variant

CACHE_FORMAT = 7  # raise it when captions or variants change, so that old caches are not used
ENCODE_BATCH = 128


@dataclass(frozen=True)
class LatentCache:
    """Training data: `latents` fp16 [n, c, h, w], `states` fp16 [n, tokens, width], `empty_states` [tokens, width].

    `shares` is float64 [n], the probability of each row in a draw; None draws every row once an epoch.
    """

    latents: np.ndarray
    states: np.ndarray
    empty_states: np.ndarray
    captions: tuple[str, ...]
    shares: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.latents)


class CaptionEncoder:
    """Frozen MiniLM: captions → the last hidden states of 24 tokens, as the pipeline passes them to the network."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: BertModel) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder.eval()

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Return fp32 [n, 24, 384]."""
        tokens = self.tokenizer(
            list(captions), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        )
        ids, mask = (tokens[name].to(self.encoder.device) for name in ("input_ids", "attention_mask"))
        return self.encoder(ids, attention_mask=mask).last_hidden_state.cpu()


def load_caption_encoder() -> CaptionEncoder:
    """Load MiniLM from the installed wheel. Raises `JobRejected` if it is missing or not the one we trained with."""
    return CaptionEncoder(*load_text_encoder())


@torch.inference_mode()
def encode_latents(autoencoder: AutoencoderKL, pixels: np.ndarray) -> Tensor:
    """Encode uint8 [n, h, w, 3] to the posterior's mean, fp32 [n, c, h/8, w/8]."""
    device = next(autoencoder.parameters()).device
    with mixed_precision(device):
        latents = autoencoder.encode(as_images(pixels).to(device), return_dict=False)[0].mean
    return latents.float().cpu() * autoencoder.config["scaling_factor"]


def hash_network(network: nn.Module) -> str:
    """Hash every tensor of a network and its latents' scaling factor, as hex digits."""
    hasher = hashlib.sha256(str(getattr(network.config, "scaling_factor", "")).encode())
    for name, tensor in sorted(network.state_dict().items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def open_cache(folder: Path) -> LatentCache:
    """Memory-map a finished cache."""
    listing = json.loads((folder / "variants.json").read_text())
    return LatentCache(
        np.load(folder / "latents.npy", mmap_mode="r"),
        np.load(folder / "states.npy", mmap_mode="r"),
        np.load(folder / "empty.npy"),
        tuple(entry["caption"] for entry in listing),
    )


@dataclass(frozen=True)
class EncodedBatch:
    """Some rows of a cache: latents [n, c, h, w], token states [n, tokens, width], and a description of each row."""

    latents: Tensor
    states: Tensor
    listing: list[dict[str, str]]


def open_or_write_cache(
    cache_folder: Path, batches: Iterable[EncodedBatch], empty_states: Tensor, total: int, on_progress: ProgressCallback
) -> LatentCache:
    """Open the cache in `cache_folder`, or write it from `batches`, `total` rows together."""
    if cache_folder.exists():
        return open_cache(cache_folder)
    partial_folder = cache_folder.with_suffix(".partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    files: dict[str, np.memmap] = {}
    listing: list[dict[str, str]] = []
    for batch in batches:
        span = slice(len(listing), len(listing) + len(batch.listing))
        for name, rows in (("latents", batch.latents), ("states", batch.states)):
            if name not in files:
                shape = (total, *rows.shape[1:])
                files[name] = np.lib.format.open_memmap(partial_folder / f"{name}.npy", "w+", np.float16, shape)
            files[name][span] = rows.numpy()
        listing += batch.listing
        on_progress(len(listing), total)
    if len(listing) != total:
        raise ValueError(f"{len(listing)} of {total} variants were made")
    for file in files.values():
        file.flush()
    np.save(partial_folder / "empty.npy", empty_states.numpy())
    (partial_folder / "variants.json").write_text(json.dumps(listing))
    partial_folder.rename(cache_folder)
    return open_cache(cache_folder)


def open_variant_cache(
    folder: Path,
    pictures: Sequence[Artwork],
    pairs: Sequence[tuple[int, int]],
    encoders: tuple[AutoencoderKL, CaptionEncoder],
    *,
    seed: int,
    on_progress: ProgressCallback = lambda finished, total: None,
) -> LatentCache:
    """Open or build the cache of these (picture, number) pairs under `folder`, as these encoders encode them."""
    autoencoder, caption_encoder = encoders
    pair_keys = "".join(f"{pictures[index].key}#{number};" for index, number in pairs)
    key = f"{CACHE_FORMAT}/{seed}/{hash_network(autoencoder)}/{hash_network(caption_encoder.encoder)}/{pair_keys}"
    target = folder / f"variants-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    batches = _encode_variants(pictures, pairs, autoencoder, caption_encoder, seed)
    return open_or_write_cache(target, batches, caption_encoder([""])[0], len(pairs), on_progress)


def _encode_variants(
    pictures: Sequence[Artwork],
    pairs: Sequence[tuple[int, int]],
    autoencoder: AutoencoderKL,
    caption_encoder: CaptionEncoder,
    seed: int,
) -> Iterator[EncodedBatch]:
    for start in range(0, len(pairs), ENCODE_BATCH):
        batch = [render_variant(pictures[index], number, seed) for index, number in pairs[start : start + ENCODE_BATCH]]
        yield EncodedBatch(
            encode_latents(autoencoder, np.stack([item.pixels for item in batch])),
            caption_encoder([item.caption for item in batch]),
            [{"key": item.key, "licence": item.licence, "caption": item.caption} for item in batch],
        )


DATASET_FORMAT = 1  # raise it when views change
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
    key = f"{DATASET_FORMAT}/{seed}/{side}/{flip}/{dataset.fingerprint}/{model.fingerprint}"
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
    selected_rows = [rows[int(place)] for place in spread_rows(len(rows), EVALUATION_PICTURES)]
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
