"""Loads a pipeline whose network is one file: GGUF, or safetensors that hold nothing else.

The rest of the pipeline is a diffusers folder beside the file, with its name without suffix; of the network that folder
needs only the configuration.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.contract import Dtype
from engine.contract.rejection import JobRejected
from engine.hub.catalogue import GGUF_SUFFIX
from engine.models.files.gguf_header import count_gguf_weights
from engine.models.files.model_source import find_configs_folder
from engine.models.files.pipeline_parts import Part, find_part_classes, list_parts, read_index
from engine.models.files.single_file_header import read_groups
from engine.models.loading.file_weights import load_file_part
from engine.models.loading.number_formats import FormatChooser, PartFormats
from engine.models.loading.pipeline_loader import (
    LOAD_ERRORS,
    LoadedPipeline,
    OnProgress,
    load_part,
    load_pipeline,
    make_load_error,
)
from engine.pipelines.network_call import NETWORK_NAMES


def is_network_file(path: Path, name: str) -> bool:
    """Whether the file holds a network and nothing else, and the rest is beside it. Raises `JobRejected`.

    A GGUF file never holds more.
    """
    if path.suffix.lower() == GGUF_SUFFIX:
        return True
    folder = find_configs_folder(path)
    has_rest = folder is not None and any(folder.glob("*/*.safetensors"))
    return has_rest and set(read_groups(path, name)) == {"network"}


def inspect_network_file(path: Path, name: str) -> list[Part]:
    """Return the parts of the file and of its folder. Raises `JobRejected` where one is missing or wrong."""
    folder = _find_folder(path, name)
    classes = find_part_classes(read_index(folder, name), name)
    network_name = next((each for each in NETWORK_NAMES if each in classes), None)
    if network_name is None or not hasattr(classes[network_name], "from_single_file"):
        raise JobRejected(f"The network of the model {name} is of a kind that is not opened from one file.", "model")
    others = {part: part_class for part, part_class in classes.items() if part != network_name}
    network = replace(_inspect_network(path, name), name=network_name, part_class=classes[network_name], files=(path,))
    return [network, *list_parts(folder, others)]


def load_network_file_pipeline(
    path: Path, name: str, format_chooser: FormatChooser, on_progress: OnProgress | None = None
) -> LoadedPipeline:
    """Load file and folder as a pipeline. Raises `JobRejected` where they are none that can be opened."""
    folder = _find_folder(path, name)
    parts = inspect_network_file(path, name)
    class_name = read_index(folder, name)["_class_name"]
    formats = format_chooser.choose_formats(class_name, parts)

    def load(formats: PartFormats, on_progress: OnProgress | None) -> Any:
        def load_one(part: Part) -> Any:
            is_network = part.files == (path,)
            return (
                _load_network(path, part, formats, folder, name)
                if is_network
                else load_part(folder, part, formats, name)
            )

        return load_pipeline(folder, name, parts, load_one, on_progress)

    def reload(dtype: Dtype) -> Any:
        return load(format_chooser.make_single_formats(dtype, class_name, parts), None)

    return LoadedPipeline(load(formats, on_progress), formats.single_format, reload, formats.quantization)


def _find_folder(path: Path, name: str) -> Path:
    folder = find_configs_folder(path)
    if folder is None:
        sentence = f"The file of the model {name} holds only a network: the rest must lie beside it, in a folder"
        raise JobRejected(f"{sentence} {path.stem}, as diffusers saves a pipeline.", "model")
    return folder


def _inspect_network(path: Path, name: str) -> Part:
    if path.suffix.lower() != GGUF_SUFFIX:
        return read_groups(path, name)["network"].make_part("")
    count, packed = count_gguf_weights(path, name)
    return Part("", None, count, "bfloat16", packed=packed)


def _load_network(path: Path, part: Part, formats: PartFormats, folder: Path, name: str) -> Any:
    try:
        return load_file_part(path, part, formats, folder)
    except LOAD_ERRORS as error:
        raise make_load_error(name) from error
