"""Chooses how a model is held in memory: its quantisation, and what of it stays off the device. Pure.

Every caller predicts the bytes of each quantisation from headers, best first. What fits whole goes before what must be
offloaded, and offloaded layers, which every step pays for, come last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.contract import Quantization
from engine.models.quantization.part_quantization import PartQuantization
from engine.process.load_progress import format_size
from engine.process.offload_request import Offload, OffloadRequest

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


@dataclass(frozen=True)
class MemoryChoice:
    """The chosen quantisation and offload, the predicted bytes on the device, and whether they fit the budget."""

    quantization: PartQuantization
    offload: Offload
    device_bytes: int
    fits: bool

    def describe(self, name: str, budget: int) -> str:
        """Return one sentence for the log."""
        weights = f"with its {self.quantization}" if self.quantization else "in full"
        if not self.fits:
            return f"{name} does not fit: even {weights}, it takes {self._compare(budget)}"
        return f"{name} is loaded {weights}, {_OFFLOAD_TEXTS[self.offload]}: it takes {self._compare(budget)}"

    def _compare(self, budget: int) -> str:
        return f"about {format_size(self.device_bytes)}, and models may take {format_size(budget)}"


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
) -> MemoryChoice:
    """Choose the first option that fits `budget` bytes; where none does, the smallest one.

    `weights` are the quantisations that may be used, best first; `offloads` the ways of offloading that may be used. A
    caller that leaves no choice of one gives only that one. Neither may be empty. Raises ValueError with a sentence
    where no offloading of these is possible.
    """
    choices = [
        MemoryChoice(quantization, offload, size := each.count_device_bytes(offload), size <= budget)
        for group in (_QUICK_OFFLOADS, _SLOW_OFFLOADS)
        for quantization, each in weights.items()
        for offload in group
        if offload in offloads and can_offload(quantization, offload, device_type)
    ]
    if not choices:
        networks = " or ".join(dict.fromkeys(each.network for each in weights))
        raise ValueError(f"Layers of {networks} weights cannot be offloaded on this device.")
    fitting = [choice for choice in choices if choice.fits]
    return fitting[0] if fitting else min(choices, key=lambda choice: choice.device_bytes)
