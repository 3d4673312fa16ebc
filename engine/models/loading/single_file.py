"""Loads pipelines from one file: a whole model, or a network in safetensors of an original layout, or GGUF.

The pipeline class and its parts come from the folder of configurations beside the file. Without one they are fetched
from the hub, by what diffusers recognises in the file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.loaders import single_file_utils
from diffusers.quantizers.quantization_config import GGUFQuantizationConfig
from huggingface_hub import snapshot_download
from torch import nn

from engine.contract import Dtype, JobRejected
from engine.hub.catalogue import GGUF_SUFFIX
from engine.models.family import TORCH_DTYPES
from engine.models.files.model_source import find_configs_folder
from engine.models.files.pipeline_parts import (
    Part,
    find_part_classes,
    find_pipeline_class,
    list_parts,
    read_index,
    refuse_pickles,
)
from engine.models.files.tensor_reader import PartGroup, count_gguf_weights, find_group, read_groups, read_tensors
from engine.models.library_logging import silence_libraries
from engine.models.loading.pipeline_loader import (
    LOAD_ERRORS,
    FormatChooser,
    LoadedPipeline,
    OnProgress,
    PartFormats,
    load_part,
    load_parts,
    load_pipeline,
    make_load_error,
    make_unused_arguments,
    prepare_pipeline,
)
from engine.models.quantization import (
    Matrix,
    make_library_config,
    quantize_in_place,
    refuse_unavailable,
    store_in_float8,
)
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


def load_file_part(
    path: Path, part: Part, formats: PartFormats, configs: Path, is_selected: Callable[[str], bool] = lambda key: True
) -> Any:
    """Load a part from a file whose configuration is in `configs`. Raises what diffusers does, or `JobRejected`.

    `is_selected`: which of the file's weights belong to it.
    """
    dtype = TORCH_DTYPES[formats.by_part[part.name]]
    quantization = formats.find_quantization(part)
    options: dict[str, Any] = {"config": str(configs), "subfolder": part.name, "local_files_only": True}
    is_stored_in_float8 = quantization == "float8" and part.packed is not None
    if quantization != "none" and not is_stored_in_float8:
        options |= _make_quantization_options(path, part, formats, configs)
    with silence_libraries():
        loaded = part.part_class.from_single_file(
            _read_weights(path, part, dtype, is_selected), torch_dtype=dtype, **options
        )
    return store_in_float8(loaded, dtype) if is_stored_in_float8 else loaded


def _read_weights(path: Path, part: Part, dtype: torch.dtype, is_selected: Callable[[str], bool]) -> Any:
    """Return the path where the library maps the file as it is; else the part's weights in `dtype`."""
    if path.suffix.lower() == GGUF_SUFFIX:
        return str(path)
    is_converted = part.packed is not None or dtype != TORCH_DTYPES[part.stored_dtype]
    return read_tensors([path], dtype, is_selected=is_selected) if is_converted else str(path)


def _make_quantization_options(path: Path, part: Part, formats: PartFormats, configs: Path) -> dict[str, Any]:
    dtype = TORCH_DTYPES[formats.by_part[part.name]]
    quantization = formats.find_quantization(part)
    refuse_unavailable(quantization, formats.device)
    if path.suffix.lower() == GGUF_SUFFIX:
        return {"quantization_config": GGUFQuantizationConfig(compute_dtype=dtype)}
    matrices = _list_matrices(part.part_class, configs / part.name)
    config = make_library_config("diffusers", quantization, formats.device, dtype, matrices)
    return {"quantization_config": config, "device": str(formats.device)}


def _list_matrices(part_class: Any, folder: Path) -> list[Matrix]:
    """Return the matrices by the names that they get in diffusers: the file's layout may have others."""
    with torch.device("meta"):
        module: Any = part_class.from_config(part_class.load_config(str(folder), local_files_only=True))
    layers = cast(Iterable[tuple[str, nn.Module]], module.named_modules())
    return [
        Matrix(f"{name}.weight", each.out_features, each.in_features)
        for name, each in layers
        if isinstance(each, nn.Linear)
    ]
