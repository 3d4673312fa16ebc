"""Memory estimate of a model from its files' headers. Loads no weights."""

from __future__ import annotations

from pathlib import Path

from engine.contract import Dtype
from engine.models.families.embedded import WEIGHTS_FOLDER, find_minilm_folder
from engine.models.files.model_source import ModelSource, find_configs_folder
from engine.models.files.pipeline_parts import Part, count_parameters, read_index
from engine.models.loading.number_formats import FormatChooser, choose_training_formats
from engine.models.loading.pipeline_loader import inspect_folder
from engine.models.loading.single_file import inspect_file


def estimate_bytes(source: ModelSource, format_chooser: FormatChooser) -> int:
    """Return the bytes of a model. Raises `JobRejected` where something is wrong with its files."""
    class_name, parts = _inspect_source(source)
    return format_chooser.choose_formats(class_name, parts).count_bytes(parts)


def estimate_bytes_by_format(source: ModelSource, format_chooser: FormatChooser) -> dict[Dtype, int]:
    """Return the bytes in each number format that a large model may be loaded in; empty for a small model."""
    return format_chooser.estimate_sizes(*_inspect_source(source))


def estimate_embedded_bytes(weights: Path = WEIGHTS_FOLDER) -> int:
    """Return the bytes of the embedded model. Raises `JobRejected` where its text encoder is missing."""
    folders = (weights / "unet", weights / "vae", find_minilm_folder())
    parts = [
        Part(each.name, None, count_parameters(sorted(each.glob("*.safetensors")))[0], "float32") for each in folders
    ]
    return choose_training_formats(parts).count_bytes(parts)


def _inspect_source(source: ModelSource) -> tuple[str, list[Part]]:
    """Return the pipeline's class name (empty where no configuration says it) and its parts."""
    configs = find_configs_folder(source.path) if source.is_file else source.path
    parts = (inspect_file if source.is_file else inspect_folder)(source.path, source.name)
    return read_index(configs, source.name)["_class_name"] if configs else "", parts
