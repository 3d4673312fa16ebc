"""Builds tokenizers of a few tokens without a download, one for each kind of text encoder."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

transformers: Any = import_module("transformers")  # its lazy modules export nothing that a type checker sees

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def clip_tokenizer(tokens: int = 77) -> Any:
    """Build a tokenizer with one token a letter."""
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]
    return transformers.CLIPTokenizer({word: at for at, word in enumerate(words)}, [], model_max_length=tokens)


def t5_tokenizer() -> Any:
    """Build a tokenizer with one token a letter and `</s>` at the end."""
    vocabulary = [(word, 0.0) for word in ("<pad>", "</s>", "<unk>")] + [(word, -3.0) for word in "▁" + LETTERS]
    return transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def chat_tokenizer() -> Any:
    """Build a tokenizer with one token a byte, padded on the right, with Qwen's chat template."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {word: at for at, word in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = transformers.Qwen2TokenizerFast(vocabulary, [], model_max_length=1024)
    tokenizer.add_special_tokens({"additional_special_tokens": specials[1:]})
    tokenizer.chat_template = CHAT
    return tokenizer


def gemma_tokenizer() -> Any:
    """Build a tokenizer with one token a letter and `<bos>` at the start."""
    specials = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    words = [*specials.values(), "▁", *LETTERS]
    vocabulary = {word: at for at, word in enumerate(words)}
    rules = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True))  # noqa: S106 - no password
    rules.normalizer = normalizers.Replace(" ", "▁")
    rules.decoder = decoders.Replace("▁", " ")
    rules.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=rules, model_max_length=4096, **specials)
