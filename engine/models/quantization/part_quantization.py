"""How the weights of a model's network and of its text encoders are stored. Loads nothing."""

from __future__ import annotations

from dataclasses import dataclass

from engine.contract import Quantization
from engine.pipelines.network_call import NETWORK_NAMES, TEXT_ENCODER_PREFIX


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
