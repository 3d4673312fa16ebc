"""Copies of a pipeline's networks with LoRAs in them, loaded by diffusers (PEFT); Hu et al. 2021.

A copy shares every weight with its original network, which stays unchanged: without LoRAs it gives the same bits before
and after.
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.families.additions import Addition
from engine.families.quiet import quiet
from engine.memory import is_out_of_memory
from engine.unfit import Unfit

log = logging.getLogger(__name__)

KEPT = 8  # LoRAs in one copy; beyond that it is remade, which costs no memory and little time

_PART = re.compile(r"lora(_B|_up|\.up|_linear_layer\.up)\b.*\.weight$")  # one for each changed layer


class Adapted:
    """A copy of a pipeline with LoRAs in its network `net` and its text encoders. `pipeline` itself stays unchanged."""

    def __init__(self, pipeline: Any, network: str, net: Any) -> None:
        if not available():
            raise Unfit("LoRAs need the package peft, which this worker lacks.", "worker")
        if not hasattr(pipeline, "load_lora_weights"):
            raise Unfit(f"LoRAs cannot be added to a {type(pipeline).__name__}.", "model")
        self.net, self._source, self._network = net, pipeline, network
        self._begin()

    def switched(self, weights: Mapping[Addition, float]) -> Any:
        """Return the pipeline with exactly these LoRAs at these weights, which add up. Raises `Unfit`."""
        if tuple(weights.items()) == self._on:
            return self.pipeline
        if len(self._parts | {one.revision for one in weights}) > KEPT:
            self._begin()
        with loading():
            for one in weights:
                if one.revision not in self._parts:
                    self._load(one)
            strengths: dict[str, float] = {}
            for one, weight in weights.items():  # the same file under two names adds up
                strengths[_adapter(one)] = strengths.get(_adapter(one), 0.0) + weight
            self.pipeline.set_adapters(list(strengths), list(strengths.values()))
        self._on = tuple(weights.items())
        return self.pipeline

    def has(self, some: Iterable[Addition]) -> bool:
        """Whether all of these are loaded."""
        return all(one.revision in self._parts for one in some)

    def _begin(self) -> None:
        """Make fresh copies without LoRAs."""
        self.pipeline = copy.copy(self._source)
        self._parts: set[str] = set()
        self._on: tuple[tuple[Addition, float], ...] = ()
        self._modules: list[tuple[Any, Any]] = []  # (copy, original)
        for name in getattr(self._source, "_lora_loadable_modules", ()):
            part = self.net if name == self._network else getattr(self._source, name, None)
            if isinstance(part, torch.nn.Module):
                vars(self.pipeline)[name] = _twin(part)
                self._modules.append((vars(self.pipeline)[name], part))

    def _load(self, one: Addition) -> None:
        adapter, parts = _adapter(one), count(one)
        try:
            self.pipeline.load_lora_weights(
                str(one.path.parent), weight_name=one.path.name, adapter_name=adapter, use_safetensors=True,
                local_files_only=True,
            )  # fmt: skip
        except Exception as error:  # untrusted files, many conversions: any error is possible
            self._begin()
            if is_out_of_memory(error):
                raise
            raise _unfit(one, str(error)) from error
        layers = (layer for each, _ in self._modules for layer in each.modules())
        taken = sum(adapter in getattr(layer, "lora_A", ()) for layer in layers)
        if taken < max(1, parts):
            self._begin()
            raise _unfit(one, f"only {taken} of its {parts} layers fit")
        for each, like in self._modules:
            first = next(like.parameters())
            torch.nn.Module.to(
                each.eval().requires_grad_(False), first.device, first.dtype
            )  # shared tensors are already there
        self._parts.add(one.revision)


def available() -> bool:
    """Whether PEFT is installed: without it diffusers reads no LoRA."""
    return find_spec("peft") is not None


def _twin(module: Any) -> Any:
    """Copy a module, sharing all its tensors."""
    return copy.deepcopy(module, {id(each): each for each in (*module.parameters(), *module.buffers())})


def _adapter(one: Addition) -> str:
    """Return PEFT's name for it, which may not contain a dot."""
    return f"of_{one.revision}"


def count(one: Addition) -> int:
    """Return how many layers its file changes. Raises `Unfit` where it is unreadable."""
    try:
        with safe_open(one.path, framework="pt") as file:
            return sum(_PART.search(key) is not None for key in list(file.keys()))
    except (OSError, SafetensorError) as error:
        raise Unfit(f"The LoRA {one.name} cannot be read as safetensors.", "worker") from error


def _unfit(one: Addition, why: str) -> Unfit:
    log.info("the LoRA %s does not fit: %s", one.name, why)
    return Unfit(f"The LoRA {one.name} does not fit this model.", "model")


@contextmanager
def loading() -> Iterator[None]:
    """Load outside of inference mode, whose tensors cannot be used elsewhere, and without library warnings."""
    with torch.inference_mode(False), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of a second LoRA in one network
        yield
