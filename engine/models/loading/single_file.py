"""Opens one safetensors file in the layout of the original programs, through diffusers' conversion.

The pipeline class and its parts come from the folder of configurations beside the file. Without one they are fetched
from the hub, by what diffusers recognises in the file.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from diffusers.loaders import single_file_utils
from huggingface_hub import snapshot_download

from engine.contract import Dtype
from engine.contract.rejection import JobRejected
from engine.models.family import TORCH_DTYPES
from engine.models.files.model_source import find_configs_folder
from engine.models.files.pipeline_parts import Part, find_part_classes, find_pipeline_class, read_index, refuse_pickles
from engine.models.files.single_file_header import PartGroup, find_group, read_groups
from engine.models.library_logging import silence_libraries
from engine.models.loading.file_weights import load_file_part
from engine.models.loading.number_formats import FormatChooser, PartFormats
from engine.models.loading.pipeline_loader import (
    LOAD_ERRORS,
    LoadedPipeline,
    OnProgress,
    load_parts,
    make_load_error,
    make_unused_arguments,
    prepare_pipeline,
)
from engine.models.quantization.library_configs import quantize_in_place, refuse_unavailable
from engine.pipelines.network_call import NETWORK_NAMES, TEXT_ENCODER_PREFIX

CONFIG_PATTERNS = ["*.json", "**/*.json", "*.txt", "**/*.txt", "**/*.model"]


def load_file_pipeline(
    path: Path, name: str, format_chooser: FormatChooser, on_progress: OnProgress | None = None
) -> LoadedPipeline:
    """Open a file as a pipeline. Raises `JobRejected` where it is no model that can be opened."""
    read_groups(path, name)  # refuse a bad file before anything is fetched
    configs = find_configs(path, name)
    index = read_index(configs, name)
    parts = inspect_file(path, name, index)
    class_name = index["_class_name"]
    formats = format_chooser.choose_formats(class_name, parts)

    def reload(dtype: Dtype) -> Any:
        return _load(path, name, configs, format_chooser.make_single_formats(dtype, class_name, parts), None)

    pipeline = _load(path, name, configs, formats, on_progress)
    return LoadedPipeline(pipeline, formats.single_format, reload, formats.quantization)


def _load(path: Path, name: str, configs: Path, formats: PartFormats, on_progress: OnProgress | None) -> Any:
    index = read_index(configs, name)
    pipeline_type = find_pipeline_class(index, name)
    part_classes = find_part_classes(index, name)
    refuse_pickles(configs, part_classes)
    parts = [replace(part, part_class=part_classes.get(part.name)) for part in inspect_file(path, name, index)]

    def load_part(part: Part) -> Any:
        group = "vae" if part.name == "vae" else "network"
        return load_file_part(path, part, formats, configs, lambda key: find_group(key) == group)

    try:
        loadable_parts = [part for part in parts if hasattr(part.part_class, "from_single_file")]
        loaded_parts = load_parts(loadable_parts, load_part, on_progress) | make_unused_arguments(index)
        text_dtype = TORCH_DTYPES[formats.by_part.get("text_encoder", "float32")]
        with silence_libraries():
            pipeline = pipeline_type.from_single_file(
                str(path), config=str(configs), dtype=text_dtype, local_files_only=True, **loaded_parts
            )
        _quantize_text_encoders(pipeline, formats)
    except single_file_utils.SingleFileComponentError as error:
        raise JobRejected(
            f"The file of the model {name} lacks a part: its network or a text encoder.", "model"
        ) from error
    except LOAD_ERRORS as error:
        raise make_load_error(name) from error
    return prepare_pipeline(pipeline, name)


def _quantize_text_encoders(pipeline: Any, formats: PartFormats) -> None:
    """Quantise the text encoders of a loaded pipeline: the library loads them from a file only as they are."""
    quantization = formats.quantization.text
    if quantization == "none":
        return
    refuse_unavailable(quantization, formats.device)
    for part, module in pipeline.components.items():
        if part.startswith(TEXT_ENCODER_PREFIX) and module is not None:
            quantize_in_place(module, quantization, formats.device)


def find_configs(path: Path, name: str) -> Path:
    """Return the folder beside the file, or the one fetched from the hub, once a process. Raises `JobRejected`."""
    if folder := find_configs_folder(path):
        return folder
    stat = path.stat()
    return _fetch_configs(path, name, stat.st_size, stat.st_mtime_ns)


def inspect_file(path: Path, name: str, index: Mapping[str, Any] | None = None) -> list[Part]:
    """Return the sizes of network, autoencoder, text encoders. `index`: of its configurations. Raises `JobRejected`."""
    configs = find_configs_folder(path)
    known_index = index or (read_index(configs, name) if configs else {})
    network = next((each for each in NETWORK_NAMES if each in known_index), NETWORK_NAMES[0])
    part_names: dict[PartGroup, str] = {"network": network, "vae": "vae", "text_encoder": "text_encoder"}
    return [weights.make_part(part_names[group]) for group, weights in read_groups(path, name).items()]


def is_in_part(key: str, part_name: str) -> bool:
    """Whether a tensor of this name in a file belongs to the part: the network, whatever it is called, or another."""
    group = find_group(key)
    return group == part_name or (group == "network" and part_name in NETWORK_NAMES)


@functools.lru_cache(maxsize=64)
def _fetch_configs(path: Path, name: str, size: int, mtime_ns: int) -> Path:
    """Fetch the configurations that diffusers uses for such a file; cached for this `size` and modification time."""
    try:
        checkpoint: Any = cast(Any, single_file_utils).load_single_file_checkpoint(str(path), local_files_only=True)
        repository = single_file_utils.fetch_diffusers_config(checkpoint)["pretrained_model_name_or_path"]
        return Path(cast(Any, snapshot_download)(repository, allow_patterns=CONFIG_PATTERNS))
    except LOAD_ERRORS as error:
        location = f"in a folder {path.stem} beside the file"
        sentence = f"The model {name} needs its configurations, {location}, since they cannot be fetched from the hub."
        raise JobRejected(sentence, "model") from error
