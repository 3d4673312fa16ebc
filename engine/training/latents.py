"""The training data in fp16 files, computed once: latents of every variant, token states of every caption.

Knows the frozen parts (our autoencoder, MiniLM from its wheel); knows nothing of the network. The files are
memory-mapped, so a step costs only the network. A cache is renamed into place at the end, so an incomplete one is never
used.
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

from engine.families.embedded import TOKENS, load_text_encoder
from engine.training.pictures.artwork import Artwork
from engine.training.pictures.pixels import Told, as_images
from engine.training.pictures.variants import variant

FORMAT = 3  # raise it when captions or variants change, so that old caches are not used
BATCH = 128


@dataclass(frozen=True)
class Cached:
    """Training data: `latents` fp16 [n, c, h, w], `states` fp16 [n, tokens, width], `empty` [tokens, width]."""

    latents: np.ndarray
    states: np.ndarray
    empty: np.ndarray
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.latents)


class TextStates:
    """Frozen MiniLM: captions → the last hidden states of 24 tokens, as the pipeline passes them to the network."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: BertModel) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder.eval()

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Return fp32 [n, 24, 384]."""
        tokens = self.tokenizer(
            list(captions), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        )
        return self.encoder(tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state


def text_states() -> TextStates:
    """Load MiniLM from the installed wheel. Raises `Unfit` if it is missing or not the one we trained with."""
    return TextStates(*load_text_encoder())


@torch.inference_mode()
def encode(autoencoder: AutoencoderKL, pixels: np.ndarray) -> Tensor:
    """Encode uint8 [n, h, w, 3] to the posterior's mean, fp32 [n, c, h/8, w/8]."""
    with torch.autocast("cpu", torch.bfloat16):
        latents = autoencoder.encode(as_images(pixels), return_dict=False)[0].mean
    return latents.float() * autoencoder.config["scaling_factor"]


def digest(network: nn.Module) -> str:
    """Hash every tensor of a network and its latents' scaling factor, as hex digits."""
    found = hashlib.sha256(str(getattr(network.config, "scaling_factor", "")).encode())
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def open_cache(folder: Path) -> Cached:
    """Memory-map a finished cache."""
    listing = json.loads((folder / "variants.json").read_text())
    return Cached(
        np.load(folder / "latents.npy", mmap_mode="r"),
        np.load(folder / "states.npy", mmap_mode="r"),
        np.load(folder / "empty.npy"),
        tuple(entry["caption"] for entry in listing),
    )


@dataclass(frozen=True)
class Encoded:
    """Some rows of a cache: latents [n, c, h, w], token states [n, tokens, width], and a description of each row."""

    latents: Tensor
    states: Tensor
    listing: list[dict[str, str]]


def opened_or_written(target: Path, batches: Iterable[Encoded], empty: Tensor, total: int, told: Told) -> Cached:
    """Open the cache `target`, or write it from `batches`, `total` rows together."""
    if target.exists():
        return open_cache(target)
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files: dict[str, np.memmap] = {}
    listing: list[dict[str, str]] = []
    for batch in batches:
        span = slice(len(listing), len(listing) + len(batch.listing))
        for name, rows in (("latents", batch.latents), ("states", batch.states)):
            if name not in files:
                shape = (total, *rows.shape[1:])
                files[name] = np.lib.format.open_memmap(partial / f"{name}.npy", "w+", np.float16, shape)
            files[name][span] = rows.numpy()
        listing += batch.listing
        told(len(listing), total)
    if len(listing) != total:
        raise ValueError(f"{len(listing)} of {total} variants were made")
    for file in files.values():
        file.flush()
    np.save(partial / "empty.npy", empty.numpy())
    (partial / "variants.json").write_text(json.dumps(listing))
    partial.rename(target)
    return open_cache(target)


def cached(
    folder: Path,
    pictures: Sequence[Artwork],
    pairs: Sequence[tuple[int, int]],
    encoders: tuple[AutoencoderKL, TextStates],
    *,
    seed: int,
    told: Told = lambda done, of: None,
) -> Cached:
    """Open or build the cache of these (picture, number) pairs under `folder`, as these encoders encode them."""
    autoencoder, text = encoders
    drawn = "".join(f"{pictures[index].key}#{number};" for index, number in pairs)
    key = f"{FORMAT}/{seed}/{digest(autoencoder)}/{digest(text.encoder)}/{drawn}"
    target = folder / f"variants-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    return opened_or_written(
        target, _encoded(pictures, pairs, autoencoder, text, seed), text([""])[0], len(pairs), told
    )


def _encoded(
    pictures: Sequence[Artwork],
    pairs: Sequence[tuple[int, int]],
    autoencoder: AutoencoderKL,
    text: TextStates,
    seed: int,
) -> Iterator[Encoded]:
    for start in range(0, len(pairs), BATCH):
        some = [variant(pictures[index], number, seed) for index, number in pairs[start : start + BATCH]]
        yield Encoded(
            encode(autoencoder, np.stack([one.pixels for one in some])),
            text([one.caption for one in some]),
            [{"key": one.key, "licence": one.licence, "caption": one.caption} for one in some],
        )
