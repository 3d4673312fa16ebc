"""Memory estimate of a model from its files' headers. Loads no weights."""

from __future__ import annotations

from pathlib import Path

from engine.families.checkpoint import weighed_file
from engine.families.embedded import WEIGHTS, minilm
from engine.families.formats import Choice, stored_formats
from engine.families.opening import weighed
from engine.families.parts import Part, counted, read_index
from engine.families.source import Source, configs_beside
from engine.job import Dtype


def weigh(source: Source, choice: Choice) -> int:
    """Return the bytes of a model. Raises `Unfit` where something is wrong with its files."""
    pipeline, found = _looked_at(source)
    return choice.formats(pipeline, found).size(found)


def weigh_in(source: Source, choice: Choice) -> dict[Dtype, int]:
    """Return the bytes in each number format that a large model may be loaded in; empty for a small model."""
    return choice.sizes(*_looked_at(source))


def weigh_embedded(weights: Path = WEIGHTS) -> int:
    """Return the bytes of the embedded model. Raises `Unfit` where its text encoder is missing."""
    folders = (weights / "unet", weights / "vae", minilm())
    found = [Part(each.name, None, counted(sorted(each.glob("*.safetensors")))[0], "float32") for each in folders]
    return stored_formats(found).size(found)


def _looked_at(source: Source) -> tuple[str, list[Part]]:
    """Return the pipeline's class name (empty where no configuration says it) and its parts."""
    configs = configs_beside(source.path) if source.is_file else source.path
    found = (weighed_file if source.is_file else weighed)(source.path, source.name)
    return read_index(configs, source.name)["_class_name"] if configs else "", found
