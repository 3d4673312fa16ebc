"""Predicts the bytes of a model's weights by what of them is offloaded, from its files' headers. Loads no weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open

from engine.contract.rejection import JobRejected
from engine.hub.catalogue import GGUF_SUFFIX
from engine.models.files.model_source import ModelSource
from engine.models.files.pipeline_parts import Part
from engine.models.loading.memory_plan import WeightBytes
from engine.models.loading.number_formats import PartFormats
from engine.models.loading.single_file import is_in_part
from engine.models.network.layer_sizes import LayerSizes, measure_layers
from engine.pipelines.network_call import NETWORK_NAMES, TEXT_ENCODER_PREFIX


def weigh_parts(parts: Sequence[Part], formats: PartFormats, source: ModelSource, device: torch.device) -> WeightBytes:
    """Return the predicted bytes of a model's parts in these formats. Raises `JobRejected` for an unreadable file."""
    networks = [part for part in parts if part.name in NETWORK_NAMES]
    texts = [part for part in parts if part.name.startswith(TEXT_ENCODER_PREFIX)]
    total = formats.count_bytes(parts)
    network_bytes, text_bytes = (formats.count_bytes(each) for each in (networks, texts))
    return WeightBytes(
        network=network_bytes,
        text_encoders=text_bytes,
        others=total - network_bytes - text_bytes,
        network_group=_measure_group(networks, formats, source, device),
        text_group=_measure_group(texts, formats, source, device),
    )


def _measure_group(parts: Sequence[Part], formats: PartFormats, source: ModelSource, device: torch.device) -> int:
    """Return the most bytes of these parts that are on the device at once while their layers are offloaded."""
    return max((_measure_part_group(part, formats, source, device) for part in parts), default=0)


def _measure_part_group(part: Part, formats: PartFormats, source: ModelSource, device: torch.device) -> int:
    if any(file.suffix.lower() == GGUF_SUFFIX for file in part.files):  # its layers are not listed here
        return formats.count_bytes([part])
    sizes = _read_layers(part, source)
    at_once = sizes.count_at_once(is_streamed=device.type == "cuda")
    return round(formats.count_bytes([part]) * at_once / max(1, sizes.total))


def _read_layers(part: Part, source: ModelSource) -> LayerSizes:
    """Return the sizes of a part's layers; of a file in the layout of the original programs, by that file's names."""
    try:
        if not source.is_file or part.files:
            return measure_layers(_count_by_name(part.files))
        return measure_layers(each for each in _count_by_name([source.path]) if is_in_part(each[0], part.name))
    except (OSError, SafetensorError) as error:
        raise JobRejected(f"The weights of the model {source.name} cannot be read.", "model") from error


def _count_by_name(files: Iterable[Path]) -> Iterable[tuple[str, int]]:
    for path in files:
        with cast(Any, safe_open)(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                yield key, torch.Size(file.get_slice(key).get_shape()).numel()
