"""Runs a network's forward: directly, on a copy with packed weights, or as a CUDA graph, always with the same bits."""

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
    """The forwards of one model."""

    def __init__(self, net: Any, device: torch.device) -> None:
        self._may_record = device.type == "cuda"
        self._packs = Packs() if device.type == "cpu" and can_pack(net) else None
        self._graphs: Graphs | None = None
        self._told: tuple[Inputs, Inputs] = (), ()  # the last conditions, and the same in the network's dtype

    def leave_as_it_is(self) -> None:
        """Disable packing and recording."""
        self._packs = self._graphs = None
        self._may_record = False

    def record(self) -> None:
        """From now on, record recurring shapes as CUDA graphs; no effect on a processor."""
        if self._may_record:
            self._graphs = Graphs()

    def forget(self) -> None:
        """Release everything that refers to the network."""
        self._packs, self._told = None, ((), ())
        if self._graphs is not None:
            self._graphs = Graphs()

    def tell(self, texts: Inputs, kind: torch.dtype) -> Inputs:
        """Return the conditions in `kind`: the same tensors as last time for the same input, as at the next step."""
        given, told = self._told
        same = len(given) == len(texts) and all(one is other for one, other in zip(given, texts, strict=True))
        if not same or any(each.dtype != kind for each in told):
            told = tuple(cast(each, kind) for each in texts)
            self._told = texts, told
        return told

    def run(
        self, net: Any, dtype: Dtype, inputs: Inputs, predict: Callable[[Any, Inputs], torch.Tensor]
    ) -> torch.Tensor:
        """Return `predict(net, inputs)`. The inputs are x, t, and conditions, which may recur."""
        shapes = (dtype, *(each.shape for each in inputs))
        if self._graphs is not None:
            return self._graphs.run(shapes, inputs, lambda given: predict(net, given))
        if self._packs is not None:
            return self._packs.run(net, shapes, lambda network: predict(network, inputs), inputs[2:])
        return predict(net, inputs)
