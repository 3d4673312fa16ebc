"""Copies of a pipeline's networks with LoRAs in them, loaded by diffusers (PEFT); Hu et al. 2021.

A copy shares every weight with its original network, which stays unchanged: without LoRAs it gives the same bits before
and after.
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open

from engine.contract.rejection import JobRejected
from engine.device.memory import is_out_of_memory
from engine.models.library_logging import silence_libraries
from engine.models.lora.lora_files import LoraFile
from engine.models.network.group_offload import copy_without_offload, find_offload, offload_like, remove_hooks
from engine.models.quantization.quantized_network import find_compute_dtype

log = logging.getLogger(__name__)

LORAS_PER_COPY = 8  # LoRAs in one copy; beyond that it is remade, which costs no memory and little time

_LAYER_KEY = re.compile(r"lora(_B|_up|\.up|_linear_layer\.up)\b.*\.weight$")  # one for each changed layer


class LoraPipeline:
    """A copy of a pipeline with LoRAs in its network `net` and its text encoders. `pipeline` itself stays unchanged."""

    def __init__(self, pipeline: Any, network_name: str, net: Any) -> None:
        if not is_peft_available():
            raise JobRejected("LoRAs need the package peft, which this worker lacks.", "worker")
        if not hasattr(pipeline, "load_lora_weights"):
            raise JobRejected(f"LoRAs cannot be added to a {type(pipeline).__name__}.", "model")
        self.net = net
        self._original = pipeline
        self._network_name = network_name
        self._reset()

    def set_loras(self, weights: Mapping[LoraFile, float]) -> Any:
        """Return the pipeline with exactly these LoRAs at these weights, which add up. Raises `JobRejected`."""
        if tuple(weights.items()) == self._active_weights:
            return self.pipeline
        if len(self._loaded_revisions | {lora.revision for lora in weights}) > LORAS_PER_COPY:
            self._reset()
        with lora_loading_context(), self._in_host_memory():
            for lora in weights:
                if lora.revision not in self._loaded_revisions:
                    self._load_lora(lora)
            adapter_weights: dict[str, float] = {}
            for lora, weight in weights.items():  # the same file under two names adds up
                adapter_weights[_make_adapter_name(lora)] = adapter_weights.get(_make_adapter_name(lora), 0.0) + weight
            self.pipeline.set_adapters(list(adapter_weights), list(adapter_weights.values()))
        self._active_weights = tuple(weights.items())
        return self.pipeline

    @contextmanager
    def _in_host_memory(self) -> Generator[None]:
        """Change the copies without hooks of offloading, which know only the layers of before.

        On a processor a copy's weights stay mapped from the files of its offloaded original.
        """
        for each, _ in self._copied_modules:
            remove_hooks(each)
        yield
        for each, original in self._copied_modules:
            settings = find_offload(original)
            if settings is not None and settings.device.type != "cpu":
                offload_like(each, original)

    def has_loras(self, loras: Iterable[LoraFile]) -> bool:
        """Whether all of these are loaded."""
        return all(lora.revision in self._loaded_revisions for lora in loras)

    def _reset(self) -> None:
        """Make fresh copies without LoRAs."""
        self.pipeline = copy.copy(self._original)
        self._loaded_revisions: set[str] = set()
        self._active_weights: tuple[tuple[LoraFile, float], ...] = ()
        self._copied_modules: list[tuple[Any, Any]] = []  # (copy, original)
        for name in getattr(self._original, "_lora_loadable_modules", ()):
            part = self.net if name == self._network_name else getattr(self._original, name, None)
            if isinstance(part, torch.nn.Module):
                part_copy: Any = copy_without_offload(part)
                vars(self.pipeline)[name] = part_copy
                self._copied_modules.append((part_copy, part))

    def _load_lora(self, lora: LoraFile) -> None:
        adapter = _make_adapter_name(lora)
        layer_count = count_layers(lora)
        try:
            self.pipeline.load_lora_weights(
                str(lora.path.parent),
                weight_name=lora.path.name,
                adapter_name=adapter,
                use_safetensors=True,
                local_files_only=True,
            )
        except Exception as error:  # untrusted files, many conversions: any error is possible
            self._reset()
            if is_out_of_memory(error):
                raise
            raise _reject_lora(lora, str(error)) from error
        layers = (layer for copied, _ in self._copied_modules for layer in copied.modules())
        fitting_count = sum(adapter in getattr(layer, "lora_A", ()) for layer in layers)
        if fitting_count < max(1, layer_count):
            self._reset()
            raise _reject_lora(lora, f"only {fitting_count} of its {layer_count} layers fit")
        for each, original in self._copied_modules:
            _place_lora_weights(each.eval().requires_grad_(False), original)
        self._loaded_revisions.add(lora.revision)


def is_peft_available() -> bool:
    """Whether PEFT is installed: without it diffusers reads no LoRA."""
    return find_spec("peft") is not None


def _place_lora_weights(module: Any, original: Any) -> None:
    """Move the LoRAs' weights to the original's device and number format; the shared ones, quantised or not, stay."""
    device = next(original.parameters()).device
    dtype = find_compute_dtype(original)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(device, dtype)


def _make_adapter_name(lora: LoraFile) -> str:
    """Return PEFT's name for it, which may not contain a dot."""
    return f"of_{lora.revision}"


def count_layers(lora: LoraFile) -> int:
    """Return how many layers its file changes. Raises `JobRejected` where it is unreadable."""
    try:
        with cast(Any, safe_open)(lora.path, framework="pt") as file:
            return sum(_LAYER_KEY.search(key) is not None for key in list(file.keys()))
    except (OSError, SafetensorError) as error:
        raise JobRejected(f"The LoRA {lora.name} cannot be read as safetensors.", "worker") from error


def _reject_lora(lora: LoraFile, reason: str) -> JobRejected:
    log.info("the LoRA %s does not fit: %s", lora.name, reason)
    return JobRejected(f"The LoRA {lora.name} does not fit this model.", "model")


@contextmanager
def lora_loading_context() -> Generator[None]:
    """Load outside of inference mode, whose tensors cannot be used elsewhere, and without library warnings."""
    with torch.inference_mode(False), silence_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of a second LoRA in one network
        yield
