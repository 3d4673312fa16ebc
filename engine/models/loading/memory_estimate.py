"""Predicts the bytes of a model from its files' headers, and chooses how it is held in memory. Loads no weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError

from engine.contract import Dtype, JobRejected, Quantization
from engine.hub.catalogue import GGUF_SUFFIX
from engine.models.autoencoder.large_decoder import LARGE_DECODER_FOLDER
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.files.model_source import ModelSource, find_configs_folder
from engine.models.files.pipeline_parts import Part, count_parameters, read_header, read_index
from engine.models.loading.pipeline_loader import FormatChooser, PartFormats, choose_training_formats, inspect_folder
from engine.models.loading.single_file import inspect_file, inspect_network_file, is_in_part, is_network_file
from engine.models.network.pipeline_offload import LayerSizes, measure_layers
from engine.models.quantization import PartQuantization, SizedQuantization, list_candidates, refuse_unopenable
from engine.models.text_embedder import find_minilm_folder
from engine.pipelines.network_call import NETWORK_NAMES, TEXT_ENCODER_PREFIX
from engine.process.load_progress import format_size
from engine.process.memory_requests import Offload, OffloadRequest, QuantizationRequests
from engine.process.model_settings import WEIGHTS_FOLDER

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadChoice:
    """How a model is loaded: its quantisation, what stays off the device, its bytes there, whether they fit."""

    quantization: PartQuantization
    offload: Offload
    size: int
    fits: bool = True

    def describe(self, name: str, budget: int) -> str:
        """Return one sentence for the log."""
        weights = f"with its {self.quantization}" if self.quantization else "in full"
        takes = f"it takes about {format_size(self.size)}, and models may take {format_size(budget)}"
        if not self.fits:
            return f"{name} does not fit: even {weights}, {takes}"
        return f"{name} is loaded {weights}, {_OFFLOAD_TEXTS[self.offload]}: {takes}"


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
        return choice


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
    configs = find_configs_folder(source.path) if source.is_file else source.path
    parts = _choose_inspection(source)(source.path, source.name)
    class_name = read_index(configs, source.name)["_class_name"] if configs else ""
    if class_name in StableDiffusion.pipelines and not source.is_file:
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
        yield from ((name, each.shape.numel()) for name, each in read_header(path).items())


MOVABLE_LAYERS: dict[str, tuple[Quantization, ...]] = {  # by the device's type: weights whose layers can be offloaded
    "cuda": ("none", "int8", "float8", "int4", "gguf"),  # bitsandbytes keeps what a layer needs beside its weights
    "cpu": ("none",),  # layers wait in files of safetensors, which hold plain numbers
}
_QUICK_OFFLOADS: tuple[Offload, ...] = ("none", "text")  # without a cost a step
_SLOW_OFFLOADS: tuple[Offload, ...] = ("layers",)
_OFFLOAD_TEXTS: dict[Offload, str] = {
    "none": "whole on the device",
    "text": "its text encoders kept off the device",
    "layers": "its network and text encoders kept off the device, one group of layers there at a time",
}


@dataclass(frozen=True)
class WeightBytes:
    """Predicted bytes of a model's weights in one quantisation.

    `others` are the autoencoder and all else that stays on the device. `network_group` and `text_group` are the most
    that is on the device at once of the network, and of the text encoders, while they are offloaded.
    """

    network: int
    text_encoders: int
    others: int
    network_group: int
    text_group: int

    def count_device_bytes(self, offload: Offload) -> int:
        """Return the most bytes of weights that are on the device at once."""
        if offload == "layers":
            return self.others + max(self.network_group, self.text_group)
        texts = self.text_encoders if offload == "none" else self.text_group
        return self.network + texts + self.others


def list_offloads(request: OffloadRequest, device_type: str, *, is_large: bool) -> tuple[Offload, ...]:
    """Return the ways of offloading that an operator's request leaves; a small model is not worth offloading.

    On a processor, text encoders are in host memory anyway.
    """
    if request == "text" and device_type == "cpu":
        return ("none",)
    if request != "auto":
        return (request,)
    if not is_large:
        return ("none",)
    return ("none", "layers") if device_type == "cpu" else ("none", "text", "layers")


def can_offload(quantization: PartQuantization, offload: Offload, device_type: str) -> bool:
    """Whether a network that is stored so can be offloaded so."""
    return offload != "layers" or quantization.network in MOVABLE_LAYERS[device_type]


def choose_memory(
    weights: Mapping[PartQuantization, WeightBytes], offloads: Sequence[Offload], budget: int, device_type: str
) -> LoadChoice:
    """Choose the first option that fits `budget` bytes; where none does, the smallest one.

    `weights` are the quantisations that may be used, best first; `offloads` the ways of offloading that may be used. A
    caller that leaves no choice of one gives only that one. Neither may be empty. Raises ValueError with a sentence
    where no offloading of these is possible.
    """
    choices = [
        LoadChoice(quantization, offload, size := each.count_device_bytes(offload), size <= budget)
        for group in (_QUICK_OFFLOADS, _SLOW_OFFLOADS)
        for quantization, each in weights.items()
        for offload in group
        if offload in offloads and can_offload(quantization, offload, device_type)
    ]
    if not choices:
        networks = " or ".join(dict.fromkeys(each.network for each in weights))
        raise ValueError(f"Layers of {networks} weights cannot be offloaded on this device.")
    fitting = [choice for choice in choices if choice.fits]
    return fitting[0] if fitting else min(choices, key=lambda choice: choice.size)
