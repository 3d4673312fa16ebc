"""LoRAs of one model: which fit, and copies of its networks with LoRAs in them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from engine.contract import Lora
from engine.contract.rejection import JobRejected
from engine.models.lora.compatibility import is_compatible
from engine.models.lora.lora_files import LoraFile, find_lora, find_loras
from engine.models.lora.lora_pipeline import LoraPipeline, count_layers, is_peft_available

MAX_LORAS = 256  # announced LoRAs, the limit of `engine.contract.ModelProfile`
MAX_COPIES = 6  # copies share the model's weights; only the LoRAs take memory

LoraWeights = dict[LoraFile, float]


class LoraCollection:
    """The LoRAs in `folder` for one pipeline, and the one in its `model_folder`. None: there is no such folder.

    PEFT is imported only when one is used.
    """

    def __init__(self, pipeline: Any, network_name: str) -> None:
        self.folder: Path | None = None
        self.model_folder: Path | None = None
        self._pipeline = pipeline
        self._network_name = network_name
        self._copies: OrderedDict[Hashable, LoraPipeline] = OrderedDict()
        self._compatible_revisions: dict[str, bool] = {}  # by revision
        self._resolved_weights: dict[tuple[Lora, ...], LoraWeights] = {}

    def list_compatible(self) -> tuple[Lora, ...]:
        """Return all that fit this model, at weight 1. Each file is checked once."""
        if not is_peft_available() or not hasattr(self._pipeline, "lora_state_dict"):
            return ()
        files = find_loras(self.folder, self.model_folder)
        compatible_files = [file for file in files if self._is_compatible(file)]
        return tuple(Lora(file.name, 1.0, file.revision) for file in compatible_files[:MAX_LORAS])

    def _is_compatible(self, file: LoraFile) -> bool | None:
        """Whether it fits; None while that is unknown, while a large network is reloaded."""
        if (
            file.revision not in self._compatible_revisions
            and getattr(self._pipeline, self._network_name, None) is not None
        ):
            self._compatible_revisions[file.revision] = is_compatible(self._pipeline, self._network_name, file)
        return self._compatible_revisions.get(file.revision)

    def resolve(self, loras: tuple[Lora, ...]) -> tuple[Lora, ...]:
        """Return the same with revisions. Raises `JobRejected` where one is missing, unfit or of another revision."""
        weights: LoraWeights = {}
        for lora in loras:
            file = find_lora(self.folder, lora.name, self.model_folder)
            if lora.revision and lora.revision != file.revision:
                raise JobRejected(f"This worker has another version of the LoRA {lora.name}.", "worker")
            if is_peft_available() and (not count_layers(file) or self._is_compatible(file) is False):
                raise JobRejected(f"The LoRA {lora.name} does not fit this model.", "model")
            weights[file] = weights.get(file, 0.0) + lora.weight
        resolved = tuple(Lora(file.name, weight, file.revision) for file, weight in weights.items())
        self._resolved_weights = {**dict(list(self._resolved_weights.items())[1 - MAX_LORAS :]), resolved: weights}
        return resolved

    def apply(self, loras: tuple[Lora, ...], copy_key: Hashable, net: Any) -> Any:
        """Return the pipeline with `loras` in its text encoders and its network `net`. Raises `JobRejected`.

        There is one copy for each `copy_key`; it is switched only when its LoRAs change.
        """
        if loras not in self._resolved_weights:
            loras = self.resolve(loras)
        lora_pipeline = self._copies.get(copy_key)
        if lora_pipeline is None or lora_pipeline.net is not net:
            lora_pipeline = self._copies[copy_key] = LoraPipeline(self._pipeline, self._network_name, net)
        self._copies.move_to_end(copy_key)
        while len(self._copies) > MAX_COPIES:
            self._copies.popitem(last=False)
        return lora_pipeline.set_loras(self._resolved_weights[loras])

    def apply_to_text_encoders(self, loras: tuple[Lora, ...], net: Any) -> Any:
        """Return the pipeline with `loras` in its text encoders: a copy that has them, else a new one around `net`."""
        weights = self._resolved_weights.get(loras, {})
        copy_keys = [
            copy_key
            for copy_key, lora_pipeline in self._copies.items()
            if isinstance(copy_key, str) and weights and lora_pipeline.has_loras(weights)
        ]
        copy_key = copy_keys[-1] if copy_keys else "texts"
        return self.apply(loras, copy_key, self._copies[copy_key].net if copy_keys else net)

    def release(self) -> None:
        """Drop all copies, and so the networks whose weights they share."""
        self._copies.clear()
