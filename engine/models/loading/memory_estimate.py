"""Memory estimate of a model from its files' headers. Loads no weights."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from safetensors import SafetensorError

from engine.contract import Dtype
from engine.contract.rejection import JobRejected
from engine.models.autoencoder.large_decoder import LARGE_DECODER_FOLDER
from engine.models.families.embedded import WEIGHTS_FOLDER, find_minilm_folder
from engine.models.files.model_source import ModelSource, find_configs_folder
from engine.models.files.pipeline_parts import Part, count_parameters, read_index
from engine.models.loading.memory_plan import MemoryChoice, WeightBytes, choose_memory, list_offloads
from engine.models.loading.number_formats import FormatChooser, choose_training_formats
from engine.models.loading.pipeline_loader import inspect_folder
from engine.models.loading.single_file import inspect_file
from engine.models.loading.weight_bytes import weigh_parts
from engine.models.registry import LATENT_CONSISTENCY, STABLE_DIFFUSION
from engine.process.offload_request import Offload, OffloadRequest

log = logging.getLogger(__name__)


def estimate_bytes(source: ModelSource, format_chooser: FormatChooser) -> int:
    """Return the bytes of a model. Raises `JobRejected` where something is wrong with its files."""
    class_name, parts = _inspect_source(source)
    return format_chooser.choose_formats(class_name, parts).count_bytes(parts)


def estimate_bytes_by_format(
    source: ModelSource, format_chooser: FormatChooser, offload: Offload = "none"
) -> dict[Dtype, int]:
    """Return the bytes in each number format that a large model may be loaded in; empty for a small model."""
    class_name, parts = _inspect_source(source)
    sizes = format_chooser.estimate_sizes(class_name, parts)
    if offload == "none":
        return sizes
    formats = {dtype: format_chooser.make_single_formats(dtype, class_name, parts) for dtype in sizes}
    weigh = partial(weigh_parts, parts, source=source, device=format_chooser.device)
    return {dtype: weigh(formats=formats[dtype]).count_device_bytes(offload) for dtype in sizes}


def estimate_weights(source: ModelSource, format_chooser: FormatChooser) -> WeightBytes:
    """Return the bytes of a model's weights by what may be offloaded. Raises `JobRejected` where files are wrong."""
    class_name, parts = _inspect_source(source)
    return weigh_parts(parts, format_chooser.choose_formats(class_name, parts), source, format_chooser.device)


def choose_offload(
    source: ModelSource, format_chooser: FormatChooser, request: OffloadRequest, budget: int
) -> MemoryChoice:
    """Choose what of a model stays off the device, within `budget` bytes; what was chosen by itself is logged.

    Raises `JobRejected` where something is wrong with the files.
    """
    class_name, parts = _inspect_source(source)
    formats, device = format_chooser.choose_formats(class_name, parts), format_chooser.device
    offloads = list_offloads(request, device.type, is_large=formats.single_format is not None)
    choice = choose_memory({"none": weigh_parts(parts, formats, source, device)}, offloads, budget, device.type)
    if len(offloads) > 1:
        log.info("%s", choice.describe(source.name, budget))
    return choice


def estimate_embedded_bytes(weights: Path = WEIGHTS_FOLDER) -> int:
    """Return the bytes of the embedded model. Raises `JobRejected` where its text encoder is missing."""
    folders = {
        "unet": weights / "unet", "vae": weights / "vae", "large_decoder": weights / LARGE_DECODER_FOLDER,
        "text_encoder": find_minilm_folder(),
    }  # fmt: skip
    parts = [_count_part(name, folder) for name, folder in folders.items()]
    return choose_training_formats(parts).count_bytes(parts)


def _inspect_source(source: ModelSource) -> tuple[str, list[Part]]:
    """Return the pipeline's class name (empty where no configuration says it) and its parts."""
    configs = find_configs_folder(source.path) if source.is_file else source.path
    parts = (inspect_file if source.is_file else inspect_folder)(source.path, source.name)
    class_name = read_index(configs, source.name)["_class_name"] if configs else ""
    if class_name in (STABLE_DIFFUSION, LATENT_CONSISTENCY) and not source.is_file:
        parts = [*parts, _count_part("large_decoder", source.path / LARGE_DECODER_FOLDER)]
    return class_name, parts


def _count_part(name: str, folder: Path) -> Part:
    """Count a folder's parameters, 0 where it is not there. Raises `JobRejected`.

    A part called "decoder" would count as some pipeline's network, with a copy in half the bits.
    """
    try:
        count, _ = count_parameters(sorted(folder.glob("*.safetensors")))
    except (OSError, SafetensorError) as error:
        raise JobRejected(f"The weights of the model's {folder.name} cannot be read.", "model") from error
    return Part(name, None, count, "float32")
