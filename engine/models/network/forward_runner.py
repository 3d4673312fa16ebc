"""Runs a network's forward: directly, on a copy with packed weights, or as a CUDA graph, always with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from engine.contract import Dtype
from engine.models.network.cuda_graphs import GraphCache
from engine.models.network.onednn_packing import PackedCopies, can_pack
from engine.pipelines.network_call import cast_tensors

Inputs = tuple[torch.Tensor, ...]


class ForwardRunner:
    """The forwards of one model."""

    def __init__(self, net: Any, device: torch.device) -> None:
        self._may_record = device.type == "cuda"
        self._packed_copies = PackedCopies() if device.type == "cpu" and can_pack(net) else None
        self._graphs: GraphCache | None = None
        self._last_conditioning: tuple[Inputs, Inputs] = (
            (),
            (),
        )  # the last conditions, and the same in the network's dtype

    def disable_optimizations(self) -> None:
        """Disable packing and recording."""
        self._packed_copies = self._graphs = None
        self._may_record = False

    def enable_cuda_graphs(self) -> None:
        """From now on, record recurring shapes as CUDA graphs; no effect on a processor."""
        if self._may_record:
            self._graphs = GraphCache()

    def release(self) -> None:
        """Release everything that refers to the network."""
        self._packed_copies = None
        self._last_conditioning = ((), ())
        if self._graphs is not None:
            self._graphs = GraphCache()

    def cast_conditioning(self, conditioning: Inputs, dtype: torch.dtype) -> Inputs:
        """Return the conditions in `dtype`: the same tensors as last time for the same input, as at the next step."""
        last_inputs, last_cast = self._last_conditioning
        is_same = len(last_inputs) == len(conditioning) and all(
            one is other for one, other in zip(last_inputs, conditioning, strict=True)
        )
        if not is_same or any(each.dtype != dtype for each in last_cast):
            last_cast = tuple(cast_tensors(each, dtype) for each in conditioning)
            self._last_conditioning = conditioning, last_cast
        return last_cast

    def run(
        self,
        net: Any,
        dtype: Dtype,
        inputs: Inputs,
        predict: Callable[[Any, Inputs], torch.Tensor],
        layout: tuple[Hashable, ...] = (),
    ) -> torch.Tensor:
        """Return `predict(net, inputs)`. The inputs are x, t, and conditions, which may recur.

        `layout` tells apart inputs of equal shapes that `predict` uses in another way.
        """
        shapes = (dtype, *layout, *(each.shape for each in inputs))
        if self._graphs is not None:
            return self._graphs.run(shapes, inputs, lambda graph_inputs: predict(net, graph_inputs))
        if self._packed_copies is not None:
            return self._packed_copies.run(net, shapes, lambda network: predict(network, inputs), inputs[2:])
        return predict(net, inputs)
