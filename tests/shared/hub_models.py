"""A hub on this machine with a small fake model: folders as diffusers saves them, and all that must not be taken."""

from __future__ import annotations

import json
import random

from tools.model_hub.repositories import HubRepository, make_repository

WEIGHTS = random.Random(1).randbytes(200_000)
INDEX: dict[str, object] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.0",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "image_encoder": [None, None],
}
FILES: dict[str, bytes] = {
    "model_index.json": json.dumps(INDEX).encode(),
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.fp16.safetensors": WEIGHTS,
    "tokenizer/vocab.json": b'{"a": 1}',
    "tokenizer/merges.txt": b"",
    "scheduler/scheduler_config.json": b"{}",
}
OTHER_FILES: dict[str, bytes] = {
    "README.md": b"# card",
    "model.safetensors": WEIGHTS[:50],
    "unet/diffusion_pytorch_model.safetensors": WEIGHTS[:100],
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "unet/diffusion_pytorch_model.bin.index.json": b"{}",
    "unet/model.py": b"print()",
    "unet/model.onnx": b"onnx",
    "safety_checker/model.safetensors": WEIGHTS[:100],
    "vae_1_0/config.json": b"{}",
}


def make_model(**fields: object) -> HubRepository:
    """Return a model with one revision."""
    return make_repository(FILES | OTHER_FILES, **fields)
