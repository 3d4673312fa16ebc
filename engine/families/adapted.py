"""Copies of a pipeline's networks with LoRAs in them, by diffusers' own loading (PEFT); Hu et al. 2021.

A copy shares every weight with the network that it was made from, which stays as it is: without LoRAs the same bits
come out before and after. Knows a pipeline's parts and files; nothing of jobs or batches.
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

KEPT = 8  # LoRAs in one copy; with one more the copy is made anew, which costs no memory and little time

_PART = re.compile(r"lora(_B|_up|\.up|_linear_layer\.up)\b.*\.weight$")  # one for each layer that is changed


class Adapted:
    """A pipeline with LoRAs in its network, which is `net`, and in its text encoders. `pipeline` stays as it is."""

    def __init__(self, pipeline: Any, network: str, net: Any) -> None:
        if not available():
            raise Unfit("LoRAs need the package peft, which this worker has not.", "worker")
        if not hasattr(pipeline, "load_lora_weights"):
            raise Unfit(f"LoRAs cannot be added to a {type(pipeline).__name__}.", "model")
        self.net, self._source, self._network = net, pipeline, network
        self._begin()

    def switched(self, weights: Mapping[Addition, float]) -> Any:
        """The pipeline with exactly these, each so strong; they add up. Raises `Unfit` where one does not fit."""
        if tuple(weights.items()) == self._on:
            return self.pipeline
        if len(self._parts | {one.revision for one in weights}) > KEPT:
            self._begin()
        with loading():
            for one in weights:
                if one.revision not in self._parts:
                    self._load(one)
            strengths: dict[str, float] = {}
            for one, weight in weights.items():  # the same file under two names counts twice
                strengths[_adapter(one)] = strengths.get(_adapter(one), 0.0) + weight
            self.pipeline.set_adapters(list(strengths), list(strengths.values()))
        self._on = tuple(weights.items())
        return self.pipeline

    def has(self, some: Iterable[Addition]) -> bool:
        """Whether none of these would have to be loaded."""
        return all(one.revision in self._parts for one in some)

    def _begin(self) -> None:
        """Fresh copies without anything in them."""
        self.pipeline = copy.copy(self._source)
        self._parts: set[str] = set()
        self._on: tuple[tuple[Addition, float], ...] = ()
        self._modules: list[tuple[Any, Any]] = []  # with what each is a copy of
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
        except Exception as error:  # files of strangers, read by many conversions: anything may come
            self._begin()
            if is_out_of_memory(error):
                raise
            raise _unfit(one, str(error)) from error
        layers = (layer for each, _ in self._modules for layer in each.modules())
        taken = sum(adapter in getattr(layer, "lora_A", ()) for layer in layers)
        if taken < max(1, parts):
            self._begin()
            raise _unfit(one, f"{taken} of its {parts} parts have a place")
        for each, like in self._modules:
            first = next(like.parameters())
            torch.nn.Module.to(each.eval().requires_grad_(False), first.device, first.dtype)  # what is shared is so
        self._parts.add(one.revision)


def available() -> bool:
    """Whether PEFT is installed, without which diffusers reads no LoRA."""
    return find_spec("peft") is not None


def _twin(module: Any) -> Any:
    """A copy that shares all tensors with the module."""
    return copy.deepcopy(module, {id(each): each for each in (*module.parameters(), *module.buffers())})


def _adapter(one: Addition) -> str:
    """PEFT's name for it, which may have no dot."""
    return f"of_{one.revision}"


def count(one: Addition) -> int:
    """How many layers its file changes. Raises `Unfit` where it cannot be read."""
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
    """Parameters that are born in inference mode could not be used outside; the libraries' notes are left out."""
    with torch.inference_mode(False), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of a second LoRA in one network
        yield
