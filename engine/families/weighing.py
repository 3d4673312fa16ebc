"""How much memory a model takes, by the headers of its files: known before anything is loaded. Loads no weights."""

from __future__ import annotations

from pathlib import Path

from engine.families.checkpoint import weighed_file
from engine.families.embedded import WEIGHTS, minilm
from engine.families.opening import weighed
from engine.families.parts import Part, counted, needed, needed_in
from engine.families.source import Source
from engine.job import Dtype


def weigh(source: Source) -> int:
    """Bytes. Raises `Unfit` where the model's files are not in order."""
    read = weighed_file if source.is_file else weighed
    return needed(read(source.path, source.name))


def weigh_in(source: Source) -> dict[Dtype, int]:
    """Bytes for each number format that its large network may be opened in; nothing where it is small."""
    read = weighed_file if source.is_file else weighed
    return needed_in(read(source.path, source.name))


def weigh_embedded(weights: Path = WEIGHTS) -> int:
    """Bytes. Raises `Unfit` where its text encoder is missing."""
    folders = (weights / "unet", weights / "vae", minilm())
    return needed(
        Part(folder.name, None, counted(sorted(folder.glob("*.safetensors")))[0], "float32") for folder in folders
    )
