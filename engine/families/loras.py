"""LoRAs of one model: which fit, and copies of its networks with LoRAs in them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from engine.families.adapted import Adapted, available, count
from engine.families.additions import Addition, addition, additions
from engine.families.fitting import fits
from engine.job import Lora
from engine.unfit import Unfit

MOST = 256  # announced LoRAs, the limit of `engine.job.Warm`
COPIES = 6  # copies share the model's weights; only the LoRAs take memory

Weights = dict[Addition, float]


class Loras:
    """The LoRAs in `folder` (None: there are none) for one pipeline. PEFT is imported only when one is used."""

    def __init__(self, pipeline: Any, network: str) -> None:
        self.folder: Path | None = None
        self._pipeline, self._network = pipeline, network
        self._copies: OrderedDict[Hashable, Adapted] = OrderedDict()
        self._fits: dict[str, bool] = {}  # by revision
        self._weights: dict[tuple[Lora, ...], Weights] = {}

    def offered(self) -> tuple[Lora, ...]:
        """Return all that fit this model, at weight 1. Each file is checked once."""
        found = additions(self.folder) if available() and hasattr(self._pipeline, "lora_state_dict") else []
        fitting = [one for one in found if self._judged(one)]
        return tuple(Lora(one.name, 1.0, one.revision) for one in fitting[:MOST])

    def _judged(self, one: Addition) -> bool | None:
        """Whether it fits; None while that is unknown, as a large network is being reloaded."""
        if one.revision not in self._fits and getattr(self._pipeline, self._network, None) is not None:
            self._fits[one.revision] = fits(self._pipeline, self._network, one)
        return self._fits.get(one.revision)

    def known(self, loras: tuple[Lora, ...]) -> tuple[Lora, ...]:
        """Return the same with revisions. Raises `Unfit` where one is missing, unfit or of another revision."""
        weights: Weights = {}
        for lora in loras:
            one = addition(self.folder, lora.name)
            if lora.revision and lora.revision != one.revision:
                raise Unfit(f"This worker has another version of the LoRA {lora.name}.", "worker")
            if available() and (not count(one) or self._judged(one) is False):
                raise Unfit(f"The LoRA {lora.name} does not fit this model.", "model")
            weights[one] = weights.get(one, 0.0) + lora.weight
        known = tuple(Lora(one.name, weight, one.revision) for one, weight in weights.items())
        self._weights = {**dict(list(self._weights.items())[1 - MOST :]), known: weights}
        return known

    def added(self, loras: tuple[Lora, ...], use: Hashable, net: Any) -> Any:
        """Return the pipeline with `loras` in its text encoders and its network `net`. Raises `Unfit`.

        There is one copy for each `use`, switched only when its LoRAs change.
        """
        if loras not in self._weights:
            loras = self.known(loras)
        copy = self._copies.get(use)
        if copy is None or copy.net is not net:
            copy = self._copies[use] = Adapted(self._pipeline, self._network, net)
        self._copies.move_to_end(use)
        while len(self._copies) > COPIES:
            self._copies.popitem(last=False)
        return copy.switched(self._weights[loras])

    def spoken(self, loras: tuple[Lora, ...], net: Any) -> Any:
        """Return the pipeline with `loras` in its text encoders: a copy that has them, else a new one around `net`."""
        known = self._weights.get(loras, {})
        uses = [use for use, copy in self._copies.items() if isinstance(use, str) and known and copy.has(known)]
        use = uses[-1] if uses else "texts"
        return self.added(loras, use, self._copies[use].net if uses else net)

    def forget(self) -> None:
        """Drop all copies, and so the networks whose weights they share."""
        self._copies.clear()
