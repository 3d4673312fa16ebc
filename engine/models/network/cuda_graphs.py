"""CUDA graphs of a network's forward, one for each recurring shape: one launch instead of a thousand.

A graph replays the recorded kernels on fixed memory. A step records it, never the start-up. It is used only where its
first replay gives the plain network's bits: a picture must not depend on how often its shape came before. A network
that cannot be recorded (it reads values on the host) runs plainly.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from cachetools import LRUCache

log = logging.getLogger(__name__)

FORWARDS_BEFORE_RECORDING = 3  # forwards of a shape before it is recorded
MAX_GRAPHS = 12  # graphs; each holds the memory of one forward

Inputs = tuple[torch.Tensor, ...]
Predict = Callable[[Inputs], torch.Tensor]


class GraphCache:
    """Recorded forwards by shape; the least recently used is dropped first."""

    def __init__(self, max_graphs: int = MAX_GRAPHS) -> None:
        self._shape_counts: Counter[Hashable] = Counter()
        self._graphs: LRUCache[Hashable, _Graph | None] = LRUCache(max_graphs)

    def run(self, shapes: Hashable, inputs: Inputs, predict: Predict) -> torch.Tensor:
        """Return `predict(inputs)`, from a graph where these shapes have one. When memory runs out, drop all graphs."""
        try:
            return self._run(shapes, inputs, predict)
        except torch.OutOfMemoryError:
            self._graphs.clear()
            return predict(inputs)

    def _run(self, shapes: Hashable, inputs: Inputs, predict: Predict) -> torch.Tensor:
        if shapes in self._graphs:
            graph = self._graphs[shapes]
            return predict(inputs) if graph is None else graph.replay(inputs)
        self._shape_counts[shapes] += 1
        out = predict(inputs)
        if self._shape_counts[shapes] >= FORWARDS_BEFORE_RECORDING:
            self._graphs[shapes] = _record_graph(inputs, predict, out)
            del self._shape_counts[shapes]
        return out


class _Graph:
    def __init__(self, inputs: Inputs, predict: Predict) -> None:
        self._inputs = tuple(each.clone() for each in inputs)
        self._graph: Any = torch.cuda.CUDAGraph()
        # Another thread may load a model meanwhile, which must not break the recording.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = predict(self._inputs)

    def replay(self, inputs: Inputs) -> torch.Tensor:
        for buffer, tensor in zip(self._inputs, inputs, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._output.clone()


def _record_graph(inputs: Inputs, predict: Predict, expected: torch.Tensor) -> _Graph | None:
    try:
        graph = _Graph(inputs, predict)
        output = graph.replay(inputs)
    except RuntimeError as error:
        log.warning("this network cannot be recorded as a CUDA graph, and runs without one: %s", error)
        return None
    if not torch.equal(output, expected):
        log.warning("a CUDA graph gives other bits than the plain forward, which is used instead")
        return None
    return graph
