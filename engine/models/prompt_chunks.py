"""Prompt chunks for text encoders of a fixed length: tokens with weights, and several chunks for a long text.

As in AUTOMATIC1111's web UI (its wiki, "Infinite prompt length" and "Attention/emphasis"): 75 tokens a chunk between a
start and an end token. Each chunk is encoded separately, and the states are concatenated. A token's state is multiplied
by its weight. Unlike there, a chunk may end anywhere, not preferably at a comma.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

import torch

from engine.contract import Lora, ModelPart, Recipe, needs_unconditional_row
from engine.models.family import Conditioning
from engine.models.network.pipeline_offload import find_offload
from engine.prompt.emphasis import split_by_weight

MAX_CHUNKS = 3  # chunks of a text; the rest is ignored
MAX_CLIP_SKIP = 12  # the limit of `engine.contract.Recipe`
Expand = Callable[[str], str]


class Chunk(NamedTuple):
    """Token ids of full length (with start, end and padding), their weights, and the unpadded length."""

    ids: list[int]
    weights: list[float]
    token_count: int


def get_chunk_capacity(tokenizer: Any) -> int:
    """Return how many tokens of a text fit into one chunk."""
    return int(tokenizer.model_max_length) - 2


def split_into_chunks(text: str, tokenizer: Any, max_chunks: int = MAX_CHUNKS, expand: Expand = str) -> list[Chunk]:
    """Split a text into 1 to `max_chunks` chunks; the rest is ignored.

    `expand` puts the tokens of textual inversions in place of their names.
    """
    ids: list[int] = []
    weights: list[float] = []
    for fragment in split_by_weight(text):
        token_ids = tokenizer(
            expand(fragment.text), add_special_tokens=False, truncation=False, verbose=False
        ).input_ids
        ids += token_ids
        weights += [fragment.weight] * len(token_ids)
    capacity = get_chunk_capacity(tokenizer)
    starts = range(0, max(1, min(len(ids), max_chunks * capacity)), capacity)
    return [
        _make_chunk(ids[start : start + capacity], weights[start : start + capacity], tokenizer) for start in starts
    ]


def count_skippable_layers(encoder_config: Any, kept_layers: int) -> int:
    """Return how many of a CLIP's last layers a recipe may skip: all but `kept_layers`, at most 12."""
    return max(0, min(MAX_CLIP_SKIP, int(encoder_config.num_hidden_layers) - kept_layers))


def pad_chunks(chunks: Sequence[Chunk], count: int, tokenizer: Any) -> list[Chunk]:
    """Return `count` chunks, filled up with empty ones."""
    return [*chunks, *[_make_chunk([], [], tokenizer)] * (count - len(chunks))][:count]


def is_plain(chunks: Sequence[Chunk]) -> bool:
    """Whether the text fits one chunk and has no weights, so the pipeline can encode it itself."""
    return len(chunks) == 1 and all(weight == 1.0 for weight in chunks[0].weights)


def _make_chunk(ids: list[int], weights: list[float], tokenizer: Any) -> Chunk:
    start, end = tokenizer("").input_ids[:2]
    padding = get_chunk_capacity(tokenizer) - len(ids)
    return Chunk(
        [start, *ids, end, *[tokenizer.pad_token_id] * padding], [1.0, *weights, 1.0, *[1.0] * padding], len(ids) + 2
    )


class EncodedText(NamedTuple):
    """Token states `[tokens, features]` of all chunks, float32, and the first chunk's pooled text, if there is one."""

    states: torch.Tensor
    pooled: torch.Tensor | None


def encode_chunks(
    chunks: Sequence[Chunk],
    encoder: Any,
    device: torch.device,
    *,
    layer: int | None = None,
    has_final_norm: bool = False,
    restore: bool = False,
) -> EncodedText:
    """Encode each chunk. `restore`: keep the mean of a chunk's states.

    `layer`: an index of the encoder's hidden states; None: its output. `has_final_norm`: the encoder's last norm
    follows the layer. Restoring is the web UI's "original" emphasis; without it, "no norm".
    """
    outputs = [_run_encoder(chunk, encoder, device, layer is not None) for chunk in chunks]
    states = [output[0][0].float() if layer is None else output.hidden_states[layer][0] for output in outputs]
    states = [(_apply_final_norm(encoder, each) if has_final_norm else each).float() for each in states]
    weighted = [_apply_weights(each, chunk.weights, restore) for each, chunk in zip(states, chunks, strict=True)]
    return EncodedText(torch.cat(weighted), outputs[0][0][0].float() if outputs[0][0].dim() == 2 else None)


def _run_encoder(chunk: Chunk, encoder: Any, device: torch.device, has_hidden_states: bool) -> Any:
    """Call the encoder as the pipelines do. An offloaded one is on `device` only inside its call."""
    ids = torch.tensor([chunk.ids], device=device)
    mask = None
    if getattr(encoder.config, "use_attention_mask", False):
        mask = (torch.arange(len(chunk.ids), device=device) < chunk.token_count).long()[None]
    return encoder(ids, attention_mask=mask, output_hidden_states=has_hidden_states)


def _apply_final_norm(encoder: Any, states: torch.Tensor) -> torch.Tensor:
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    if find_offload(encoder) is not None:  # its hooks bring the weights
        return norm(states)
    weight, bias = (each.to(states.device) for each in (norm.weight, norm.bias))
    return torch.nn.functional.layer_norm(states, norm.normalized_shape, weight, bias, norm.eps)


def _apply_weights(states: torch.Tensor, weights: Sequence[float], restore: bool) -> torch.Tensor:
    if all(weight == 1.0 for weight in weights):
        return states
    weighted = states * torch.tensor(weights, device=states.device)[:, None]
    if not restore:
        return weighted
    mean_ratio = float(states.mean() / weighted.mean())
    return weighted * min(2.0, max(0.5, mean_ratio))  # clamped: a mean near zero says nothing of the states' size


MAX_TEXTS = 256
MAX_BYTES = 256 * 2**20


class TextCache:
    """At most `MAX_TEXTS` texts of `MAX_BYTES` together, but always one."""

    def __init__(self) -> None:
        self._conditioning: OrderedDict[PromptKey, Conditioning] = OrderedDict()
        self._lock = Lock()

    @property
    def keys(self) -> list[PromptKey]:
        """The kept texts, the one used longest ago first."""
        with self._lock:
            return list(self._conditioning)

    def find(self, prompt: PromptKey) -> Conditioning | None:
        """Return a text's conditions, if they are kept."""
        with self._lock:
            if prompt in self._conditioning:
                self._conditioning.move_to_end(prompt)
            return self._conditioning.get(prompt)

    def keep(self, prompt: PromptKey, conditioning: Conditioning) -> Conditioning:
        """Keep a text's conditions, and return them; if another thread came first, return its."""
        with self._lock:
            cached = self._conditioning.setdefault(prompt, conditioning)
            while len(self._conditioning) > 1 and (
                len(self._conditioning) > MAX_TEXTS or count_text_bytes(self._conditioning) > MAX_BYTES
            ):
                self._conditioning.popitem(last=False)
            return cached

    def clear(self) -> None:
        with self._lock:
            self._conditioning.clear()


class PromptKey(NamedTuple):
    """Each key is encoded once."""

    text: str
    negative: bool = False  # it is the empty or negative prompt of guidance
    chunks: int = 1  # chunks of the image's longest text: all its texts get this length
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[ModelPart, ...] = ()  # textual inversions whose words occur in the text
    clip_skip: int = 0  # of a negative text always 0, as in diffusers' pipelines


def list_texts(recipe: Recipe) -> list[str]:
    """Return every text that has a row in some step."""
    negative = (
        [recipe.negative] if any(needs_unconditional_row(recipe, is_guided) for is_guided in (True, False)) else []
    )
    return [*(concept.text for concept in recipe.concepts), *negative]


def count_text_bytes(cache: Mapping[PromptKey, Conditioning]) -> int:
    """Return the memory of cached texts."""
    return sum(part.nbytes for conditioning in cache.values() for part in conditioning)
