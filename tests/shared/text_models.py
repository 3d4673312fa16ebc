"""Small models whose CLIPs have four layers, so that a recipe may skip some, and their unmodified pipelines."""

from __future__ import annotations

import copy
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.fixtures.small_pipelines import PIPELINE_BUILDERS
from engine.models import load_folder

LAYERS = 4


def save_model(kind: str, folder: Path) -> Path:
    """Saves the small model of a kind, with deeper text encoders."""
    torch.manual_seed(0)
    pipeline = PIPELINE_BUILDERS[kind]()
    for part in ("text_encoder", "text_encoder_2"):
        if encoder := getattr(pipeline, part, None):
            config = copy.deepcopy(encoder.config)
            config.num_hidden_layers = LAYERS
            pipeline.register_modules(**{part: type(encoder)(config)})
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def load_family(folder: Path, kind: str, data: Path) -> Any:
    """Loads it as a family, with `data` as its worker's data folder."""
    family: Any = load_folder(str(folder), kind)
    family.use_data_folder(data)
    return family


def load_pipeline(folder: Path) -> Any:
    """Loads it as the unmodified pipeline. diffusers looks for the last norm where transformers had it before 5.6."""
    pipeline: Any = import_module("diffusers").DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if not hasattr(pipeline.text_encoder, "text_model"):
        pipeline.text_encoder.text_model = SimpleNamespace(final_layer_norm=pipeline.text_encoder.final_layer_norm)
    return pipeline


WIDTH = 32  # of the small models' CLIPs


SLOTS = {"sd": {"emb": ""}, "sdxl": {"clip_l": "", "clip_g": "_2"}}  # a file's tensors → the ends of the parts' names


def write_embedding(data: Path, kind: str, name: str, vectors: int, seed: int = 1) -> Path:
    """Writes a textual inversion for a kind of model."""
    generator = torch.Generator().manual_seed(seed)
    path = data / "embeddings" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({key: torch.randn(vectors, WIDTH, generator=generator) for key in SLOTS[kind]}, path)
    return path
