"""Memory estimate of a model from its files' headers. Loads no weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError

from engine.contract import Dtype
from engine.contract.rejection import JobRejected
from engine.models.autoencoder.large_decoder import LARGE_DECODER_FOLDER
from engine.models.families.embedded import WEIGHTS_FOLDER, find_minilm_folder
from engine.models.files.model_source import ModelSource, find_configs_folder
from engine.models.files.pipeline_parts import Part, count_parameters, read_index
from engine.models.loading.memory_plan import WeightBytes, can_offload, choose_memory, list_offloads
from engine.models.loading.network_file import inspect_network_file, is_network_file
from engine.models.loading.number_formats import FormatChooser, choose_training_formats
from engine.models.loading.pipeline_loader import inspect_folder
from engine.models.loading.single_file import inspect_file
from engine.models.loading.weight_bytes import weigh_parts
from engine.models.quantization.choice import SizedQuantization, list_candidates
from engine.models.quantization.part_quantization import PartQuantization
from engine.models.quantization.stored_quantization import refuse_unopenable
from engine.models.registry import LATENT_CONSISTENCY, STABLE_DIFFUSION
from engine.pipelines.network_call import TEXT_ENCODER_PREFIX
from engine.process.offload_request import Offload, OffloadRequest
from engine.process.quantization_request import QuantizationRequests

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadChoice:
    """How a model is loaded: its quantisation, what stays off the device, and the bytes that it takes there."""

    quantization: PartQuantization
    offload: Offload
    size: int


@dataclass(frozen=True)
class InspectedModel:
    """What the headers and configurations of a model say. `class_name`: empty where no configuration says it."""

    source: ModelSource
    class_name: str
    parts: tuple[Part, ...]

    @classmethod
    def from_source(cls, source: ModelSource) -> InspectedModel:
        """Raises `JobRejected` where something is wrong with the files."""
        class_name, parts = _inspect_source(source)
        return cls(source, class_name, tuple(parts))

    def count_bytes(self, format_chooser: FormatChooser) -> int:
        """Return the bytes of the model."""
        return format_chooser.choose_formats(self.class_name, self.parts).count_bytes(self.parts)

    def count_bytes_by_format(self, format_chooser: FormatChooser, offload: Offload = "none") -> dict[Dtype, int]:
        """Return the bytes in each number format that a large model may be loaded in; empty for a small model."""
        sizes = format_chooser.estimate_sizes(self.class_name, self.parts)
        if offload == "none":
            return sizes
        formats = {dtype: format_chooser.make_single_formats(dtype, self.class_name, self.parts) for dtype in sizes}
        weigh = partial(weigh_parts, self.parts, source=self.source, device=format_chooser.device)
        return {dtype: weigh(formats=formats[dtype]).count_device_bytes(offload) for dtype in sizes}

    def weigh(self, format_chooser: FormatChooser) -> WeightBytes:
        """Return the bytes of the weights by what may be offloaded. Raises `JobRejected` where files are wrong."""
        formats = format_chooser.choose_formats(self.class_name, self.parts)
        return weigh_parts(self.parts, formats, self.source, format_chooser.device)

    def list_quantizations(
        self, format_chooser: FormatChooser, requests: QuantizationRequests, offload: OffloadRequest = "auto"
    ) -> tuple[SizedQuantization, ...]:
        """Return the quantisations that are asked for, best first, with the bytes of each. Raises `JobRejected`.

        A small model is quantised only where that is asked for by name: its network also has a copy. If `offload` is
        named, the bytes are what is on the device then, and quantisations whose layers cannot move are left out.
        """
        device = format_chooser.device
        self._check_stored(requests, device)
        packed = next((part.packed for part in self.parts if part.packed and not part.fixed_quantization), None)
        listed = list_candidates(requests, device, packed.quantization if packed else "none")
        choosers = (format_chooser.with_quantization(each).with_stored(self.parts) for each in listed)
        candidates = tuple(dict.fromkeys(each.quantization for each in choosers))
        if not format_chooser.is_large(self.parts):
            candidates = candidates[:1]
        named = "none" if offload == "auto" else list_offloads(offload, device.type, is_large=True)[0]
        possible = [each for each in candidates if can_offload(each, named, device.type)]
        return tuple(
            SizedQuantization(each, self._count_device_bytes(format_chooser.with_quantization(each), named))
            for each in possible or candidates
        )

    def _check_stored(self, requests: QuantizationRequests, device: torch.device) -> None:
        """Log requests that parts which are quantised already ignore. Raises `JobRejected` for one that cannot open."""
        for part in self.parts:
            if part.packed is None or not part.fixed_quantization:
                continue
            refuse_unopenable(part.packed, part.name, device)
            request = requests.text_request if part.name.startswith(TEXT_ENCODER_PREFIX) else requests.network
            if request not in ("auto", part.fixed_quantization):
                stays = f"stays in {part.fixed_quantization}, as its files have it"
                log.warning("the %s of %s %s: %s is ignored", part.name, self.source.name, stays, request)

    def _count_device_bytes(self, format_chooser: FormatChooser, offload: Offload) -> int:
        if offload == "none":
            return self.count_bytes(format_chooser)
        return self.weigh(format_chooser).count_device_bytes(offload)

    def choose_load(
        self,
        format_chooser: FormatChooser,
        quantizations: Sequence[SizedQuantization],
        request: OffloadRequest,
        budget: int,
    ) -> LoadChoice:
        """Choose what stays off the device, with one of these quantisations, best first. Logs what `auto` chose.

        Raises `JobRejected` where layers cannot be offloaded.
        """
        is_large = any(each.quantization for each in quantizations) or format_chooser.is_large(self.parts)
        offloads = list_offloads(request, format_chooser.device.type, is_large=is_large)
        weights = {
            each.quantization: self.weigh(format_chooser.with_quantization(each.quantization)) for each in quantizations
        }
        try:
            choice = choose_memory(weights, offloads, budget, format_chooser.device.type)
        except ValueError as error:
            raise JobRejected(str(error), "worker") from error
        if len(offloads) > 1:
            log.info("%s", choice.describe(self.source.name, budget))
        return LoadChoice(choice.quantization, choice.offload, choice.device_bytes)


def estimate_bytes(source: ModelSource, format_chooser: FormatChooser) -> int:
    """Return the bytes of a model. Raises `JobRejected` where something is wrong with its files."""
    return InspectedModel.from_source(source).count_bytes(format_chooser)


def estimate_weights(source: ModelSource, format_chooser: FormatChooser) -> WeightBytes:
    """Return the bytes of a model's weights by what may be offloaded. Raises `JobRejected` where files are wrong."""
    return InspectedModel.from_source(source).weigh(format_chooser)


def estimate_embedded_bytes(weights: Path = WEIGHTS_FOLDER) -> int:
    """Return the bytes of the embedded model. Raises `JobRejected` where its text encoder is missing."""
    folders = {
        "unet": weights / "unet",
        "vae": weights / "vae",
        "large_decoder": weights / LARGE_DECODER_FOLDER,
        "text_encoder": find_minilm_folder(),
    }
    parts = [_count_part(name, folder) for name, folder in folders.items()]
    return choose_training_formats(parts).count_bytes(parts)


def _inspect_source(source: ModelSource) -> tuple[str, list[Part]]:
    """Return the pipeline's class name (empty where no configuration says it) and its parts."""
    configs = find_configs_folder(source.path) if source.is_file else source.path
    parts = _choose_inspection(source)(source.path, source.name)
    class_name = read_index(configs, source.name)["_class_name"] if configs else ""
    if class_name in (STABLE_DIFFUSION, LATENT_CONSISTENCY) and not source.is_file:
        parts = [*parts, _count_part("large_decoder", source.path / LARGE_DECODER_FOLDER)]
    return class_name, parts


def _choose_inspection(source: ModelSource) -> Callable[[Path, str], list[Part]]:
    if not source.is_file:
        return inspect_folder
    return inspect_network_file if is_network_file(source.path, source.name) else inspect_file


def _count_part(name: str, folder: Path) -> Part:
    """Count a folder's parameters, 0 where it is not there. Raises `JobRejected`.

    A part called "decoder" would count as some pipeline's network, with a copy in half the bits.
    """
    try:
        count = count_parameters(sorted(folder.glob("*.safetensors"))).parameters
    except (OSError, SafetensorError) as error:
        raise JobRejected(f"The weights of the model's {folder.name} cannot be read.", "model") from error
    return Part(name, None, count, "float32")
