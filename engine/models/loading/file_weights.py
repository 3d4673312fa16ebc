"""Opens a network or another part that is one file, or lies in one: safetensors in an original layout, or GGUF.

diffusers converts the layout. A part is quantised while it is loaded, or stays as its file has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.quantizers.quantization_config import GGUFQuantizationConfig
from torch import nn

from engine.hub.catalogue import GGUF_SUFFIX
from engine.models.family import TORCH_DTYPES
from engine.models.files.pipeline_parts import Part
from engine.models.files.tensor_reader import read_tensors
from engine.models.library_logging import silence_libraries
from engine.models.loading.number_formats import PartFormats
from engine.models.quantization.float8_storage import store_in_float8
from engine.models.quantization.library_configs import make_library_config, refuse_unavailable
from engine.models.quantization.matrix_sizes import Matrix


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
