"""How a network's forward runs: as it is, by a copy with packed weights, or from a recorded graph. Never other bits.

Knows shapes and where the network is; nothing of what goes in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.families.packed import Packs, can_pack
from engine.families.recorded import Graphs
from engine.job import Dtype
from engine.strands.call import cast

Inputs = tuple[torch.Tensor, ...]


class Forwards:
    """Of one model. What is neither packed nor recorded runs as it is."""

    def __init__(self, net: Any, device: torch.device) -> None:
        self._may_record = device.type == "cuda"
        self._packs = Packs() if device.type == "cpu" and can_pack(net) else None
        self._graphs: Graphs | None = None
        self._told: tuple[Inputs, Inputs] = (), ()  # the last texts, and what they are in their network's dtype

    def leave_as_it_is(self) -> None:
        """Nothing is packed or recorded, whatever comes."""
        self._packs = self._graphs = None
        self._may_record = False

    def record(self) -> None:
        """From now on a shape that keeps coming is recorded as a CUDA graph; nothing changes on a processor."""
        if self._may_record:
            self._graphs = Graphs()

    def forget(self) -> None:
        """The network goes: nothing of it is held any more."""
        self._packs, self._told = None, ((), ())
        if self._graphs is not None:
            self._graphs = Graphs()

    def tell(self, texts: Inputs, kind: torch.dtype) -> Inputs:
        """The texts in `kind`: the same tensors as the last time where the same are given, as at the next step."""
        given, told = self._told
        same = len(given) == len(texts) and all(one is other for one, other in zip(given, texts, strict=True))
        if not same or any(each.dtype != kind for each in told):
            told = tuple(cast(each, kind) for each in texts)
            self._told = texts, told
        return told

    def run(
        self, net: Any, dtype: Dtype, inputs: Inputs, predict: Callable[[Any, Inputs], torch.Tensor]
    ) -> torch.Tensor:
        """`predict(net, inputs)`; the inputs are x, t, and texts, which may come again."""
        shapes = (dtype, *(each.shape for each in inputs))
        if self._graphs is not None:
            return self._graphs.run(shapes, inputs, lambda given: predict(net, given))
        if self._packs is not None:
            return self._packs.run(net, shapes, lambda network: predict(network, inputs), inputs[2:])
        return predict(net, inputs)
