"""Chooses quantisations for models that share one memory budget. Pure, but for what this device can store.

`auto` is the best that lets all models be in memory together; if even the smallest do not fit, the best with which each
fits alone, since the model cache then holds them by turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from engine.contract import Quantization
from engine.models.quantization.stored_quantization import find_obstacle, refuse_unavailable
from engine.pipelines.network_call import NETWORK_NAMES, TEXT_ENCODER_PREFIX
from engine.process.memory_requests import QuantizationRequest, QuantizationRequests

# (network, text encoders), best first: the network shows more of what is lost
AUTO_STEPS: tuple[tuple[Quantization, Quantization], ...] = (
    ("none", "none"),
    ("int8", "none"),
    ("int8", "int8"),
    ("int4", "int8"),
    ("int4", "int4"),
)
FLOAT8_STEPS: tuple[tuple[Quantization, Quantization], ...] = (("float8", "none"), ("float8", "int8"))


@dataclass(frozen=True)
class SizedQuantization:
    """A quantisation of a model, and the bytes of the model with it."""

    quantization: PartQuantization
    size: int


def list_candidates(
    requests: QuantizationRequests, device: torch.device, stored: Quantization = "none"
) -> tuple[PartQuantization, ...]:
    """Return what is asked for, the best first. Raises `JobRejected` where this worker cannot store weights so.

    `stored`: how the network's file stores its weights. A GGUF file stays as it is; float8 may, without a loss.
    """
    for request in (requests.network, requests.text_request):
        if request != "auto":
            refuse_unavailable(request, device)
    steps = AUTO_STEPS if stored != "float8" else (*AUTO_STEPS[:1], *FLOAT8_STEPS, *AUTO_STEPS[1:])
    candidates = [
        PartQuantization(
            "gguf" if stored == "gguf" else _pick(requests.network, network), _pick(requests.text_request, text)
        )
        for network, text in steps
    ]
    available = [
        each for each in candidates if not any(find_obstacle(one, device) for one in (each.network, each.text))
    ]
    return tuple(dict.fromkeys(available))


def choose_quantizations(models: Sequence[Sequence[SizedQuantization]], budget: int) -> list[SizedQuantization]:
    """Choose one candidate of each model, given best first, so that all fit together into `budget` bytes."""
    steps = [0] * len(models)
    while sum(candidates[step].size for candidates, step in zip(models, steps, strict=True)) > budget:
        reducible = [index for index, candidates in enumerate(models) if steps[index] + 1 < len(candidates)]
        if not reducible:
            return [_choose_alone(candidates, budget) for candidates in models]
        largest = min(reducible, key=lambda index: (steps[index], -models[index][steps[index]].size))
        steps[largest] += 1
    return [candidates[step] for candidates, step in zip(models, steps, strict=True)]


def _choose_alone(candidates: Sequence[SizedQuantization], budget: int) -> SizedQuantization:
    """Return the best candidate that fits alone; the smallest if none does."""
    return next((each for each in candidates if each.size <= budget), min(candidates, key=lambda each: each.size))


def _pick(request: QuantizationRequest, automatic: Quantization) -> Quantization:
    return automatic if request == "auto" else request


@dataclass(frozen=True)
class PartQuantization:
    """One quantisation for all networks of a pipeline, another for all its text encoders; the rest has none."""

    network: Quantization = "none"
    text: Quantization = "none"

    def find_for(self, part_name: str) -> Quantization:
        """Return the quantisation of a part, by its name in the pipeline."""
        if part_name in NETWORK_NAMES:
            return self.network
        return self.text if part_name.startswith(TEXT_ENCODER_PREFIX) else "none"

    def __bool__(self) -> bool:
        return self != PartQuantization()

    def __str__(self) -> str:
        parts = (("network", self.network), ("text encoders", self.text))
        named = [f"{part} in {quantization}" for part, quantization in parts if quantization != "none"]
        return " and ".join(named) or "nothing quantised"


@runtime_checkable
class HasQuantization(Protocol):
    """A family whose network may be quantised."""

    quantization: Quantization


def find_quantization(family: object) -> Quantization:
    """Return how the weights of the family's network are stored."""
    return family.quantization if isinstance(family, HasQuantization) else "none"


def is_quantized(net: Any) -> bool:
    """Whether the library that loaded the network stored its weights in fewer bits."""
    return bool(getattr(net, "is_quantized", False))


def find_compute_dtype(net: nn.Module) -> torch.dtype:
    """Return the number format in which the network computes: of its first weight that is not stored in fewer bits.

    torchao's weights have the format in which they compute as theirs. Weights of 8 bits are packed.
    """
    dtypes = (each.dtype for each in net.parameters() if each.is_floating_point() and each.dtype.itemsize > 1)
    return next(dtypes, torch.float32)


def find_weight_shape(layer: nn.Module | None) -> tuple[int, ...] | None:
    """Return the shape of a layer's weight as if it were not packed; None where it has no weight."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    weight = getattr(layer, "weight", None)
    return None if weight is None else tuple(weight.shape)
