"""What can be added to a data folder: models, and parts that models take, each kind in a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

SAFETENSORS_SUFFIX = ".safetensors"
GGUF_SUFFIX = ".gguf"
WEIGHT_SUFFIXES = (SAFETENSORS_SUFFIX, GGUF_SUFFIX)  # of models and parts that are one file
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")  # which can run code when they are opened

PartKind = Literal["model", "controlnet", "ip-adapter", "vae", "lora", "embedding"]
PART_KINDS: tuple[PartKind, ...] = get_args(PartKind)
FOLDER_BY_KIND: Mapping[PartKind, str] = MappingProxyType(
    {
        "model": "models",
        "controlnet": "controlnets",
        "ip-adapter": "ip-adapters",
        "vae": "vaes",
        "lora": "loras",
        "embedding": "embeddings",
    }
)
TITLES: Mapping[PartKind, str] = MappingProxyType(
    {
        "model": "model",
        "controlnet": "control network",
        "ip-adapter": "reference adapter",
        "vae": "autoencoder",
        "lora": "LoRA",
        "embedding": "textual inversion",
    }
)
