"""Chooses quantisations for models that share one memory budget. Pure, but for what this device can store.

`auto` is the best that lets all models be in memory together; if even the smallest do not fit, the best with which each
fits alone, since the model cache then holds them by turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.contract import Quantization
from engine.models.quantization.library_configs import find_obstacle, refuse_unavailable
from engine.models.quantization.part_quantization import PartQuantization
from engine.process.quantization_request import QuantizationRequest, QuantizationRequests

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
