"""Builds tokenizers of a few tokens without a download, one for each kind of text encoder."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

transformers: Any = import_module("transformers")  # its lazy modules export nothing that a type checker sees

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_clip_tokenizer(max_tokens: int = 77) -> Any:
    """Build a tokenizer with one token a letter."""
    token_texts = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]
    return transformers.CLIPTokenizer(
        {token: token_id for token_id, token in enumerate(token_texts)}, [], model_max_length=max_tokens
    )


def build_t5_tokenizer() -> Any:
    """Build a tokenizer with one token a letter and `</s>` at the end."""
    vocabulary = [(word, 0.0) for word in ("<pad>", "</s>", "<unk>")] + [(word, -3.0) for word in "▁" + LETTERS]
    return transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def build_chat_tokenizer() -> Any:
    """Build a tokenizer with one token a byte, padded on the right, with Qwen's chat template."""
    special_tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {
        token: token_id
        for token_id, token in enumerate([*special_tokens, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = transformers.Qwen2TokenizerFast(vocabulary, [], model_max_length=1024)
    tokenizer.add_special_tokens({"additional_special_tokens": special_tokens[1:]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_gemma_tokenizer() -> Any:
    """Build a tokenizer with one token a letter and `<bos>` at the start."""
    special_tokens = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    token_texts = [*special_tokens.values(), "▁", *LETTERS]
    vocabulary = {token: token_id for token_id, token in enumerate(token_texts)}
    bpe_tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True))  # noqa: S106 - no password
    bpe_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    bpe_tokenizer.decoder = decoders.Replace("▁", " ")
    bpe_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe_tokenizer, model_max_length=4096, **special_tokens)
