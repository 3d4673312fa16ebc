"""Runs a network's forward: directly, on a copy with packed weights, or as a CUDA graph, always with the same bits."""

from __future__ import annotations

import copy
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from cachetools import LRUCache
from torch import nn

from engine.contract import Dtype
from engine.pipelines.network_call import cast_tensors

Inputs = tuple[torch.Tensor, ...]

log = logging.getLogger(__name__)


class ForwardRunner:
    """The forwards of one model."""

    def __init__(self, net: Any, device: torch.device) -> None:
        self._may_record = device.type == "cuda"
        self._packed_copies = PackedCopies() if device.type == "cpu" and can_pack(net) else None
        self._graphs: GraphCache | None = None
        # the last conditions, and the same in the network's dtype
        self._last_conditioning: tuple[Inputs, Inputs] = ((), ())

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


FORWARDS_BEFORE_RECORDING = 3  # forwards of a shape before it is recorded
MAX_GRAPHS = 12  # graphs; each holds the memory of one forward

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


FORWARDS_BEFORE_PACKING = 2  # forwards of a shape before it is packed
MAX_PACKED_BYTES = 512 * 2**20  # of all packed copies of a model
MAX_PARAMETERS = 100_000_000  # parameters: too few copies of a larger network would fit

PredictWith = Callable[[Any], torch.Tensor]  # runs one forward of the given network
_OPERATORS = (
    "_reorder_convolution_weight",
    "_convolution_pointwise",
    "_reorder_linear_weight",
    "_linear_pointwise",
    "_reorder_convolution_transpose_weight",
    "_convolution_transpose_pointwise",
)


class PackedCopies:
    """Copies that share all but the packed weights, up to `max_bytes`; the least recently used goes first."""

    def __init__(self, max_bytes: int = MAX_PACKED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._shape_counts: Counter[Hashable] = Counter()
        self._copies: OrderedDict[Hashable, Any] = OrderedDict()

    def run(
        self, net: Any, shapes: Hashable, predict: PredictWith, recurring_inputs: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        """Run `predict` on the network, or faster on its packed copy for these shapes, with the same bits.

        Nobody writes into `recurring_inputs`, which may come again: a text's.
        """
        if shapes in self._copies:
            self._copies.move_to_end(shapes)
            return predict(self._copies[shapes])
        self._shape_counts[shapes] += 1
        if self._shape_counts[shapes] < FORWARDS_BEFORE_PACKING:
            return predict(net)
        out, self._copies[shapes] = _try_packing(net, predict, recurring_inputs)
        del self._shape_counts[shapes]
        copy_bytes = sum(each.nbytes for each in net.parameters())
        while len(self._copies) > 1 and len(self._copies) * copy_bytes > self._max_bytes:
            self._copies.popitem(last=False)
        return out


def can_pack(net: Any) -> bool:
    """Whether this build of torch has the operators, and the network is small enough for copies."""
    has_operators = torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)
    return has_operators and sum(each.numel() for each in net.parameters()) <= MAX_PARAMETERS


def _try_packing(net: Any, predict: PredictWith, recurring_inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Any]:
    """Return the plain network's output, and the network for later calls: the packed copy if its output is equal."""
    with _record_layers(net, recurring_inputs) as (shapes, text_modules):
        out = predict(net)
    try:
        packed = _make_packed_copy(net, shapes, text_modules)
        is_equal = torch.equal(predict(packed), out)
    except RuntimeError as error:  # an operator that this processor lacks
        log.info("the weights are not packed: %s", error)
        return out, net
    return out, packed if is_equal else net


@contextmanager
def _record_layers(
    net: Any, recurring_inputs: Sequence[torch.Tensor]
) -> Generator[tuple[dict[str, torch.Size], list[str]]]:
    """Record in a forward: each packable layer's input shape by name, and the modules whose only input is a text."""
    shapes: dict[str, torch.Size] = {}
    text_modules: list[str] = []

    def record_input(name: str, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _is_packable(module):
            shapes[name] = inputs[0].shape
        if len(inputs) == 1 and not kwargs and any(inputs[0] is each for each in recurring_inputs):
            text_modules.append(name)

    hooks = [
        each.register_forward_pre_hook(partial(record_input, name), with_kwargs=True)
        for name, each in net.named_modules()
    ]
    try:
        yield shapes, text_modules
    finally:
        for hook in hooks:
            hook.remove()


def _is_packable(module: nn.Module) -> bool:
    """Match exactly these classes: a subclass may compute something else."""
    return type(module) in _PACKED_LAYERS and getattr(module, "padding_mode", "zeros") == "zeros"


def _make_packed_copy(net: Any, shapes: dict[str, torch.Size], text_modules: Sequence[str] = ()) -> Any:
    packed = copy.deepcopy(net, {id(each): each for each in (*net.parameters(), *net.buffers())})
    for name, shape in shapes.items():
        parent, _, attribute = name.rpartition(".")
        module = net.get_submodule(name)
        setattr(packed.get_submodule(parent), attribute, _PACKED_LAYERS[type(module)](module, shape))
    changes = _TextChanges()
    for name in reversed(text_modules):  # nested modules first
        parent, _, attribute = name.rpartition(".")
        setattr(packed.get_submodule(parent), attribute, _CachedModule(packed.get_submodule(name), changes))
    return packed


class _TextChanges:
    """Which rows of a batch have another text than before, worked out once for all modules that read it."""

    def __init__(self) -> None:
        self._last: tuple[torch.Tensor, torch.Tensor, list[int]] | None = None

    def list_changed_rows(self, old: torch.Tensor, new: torch.Tensor) -> list[int]:
        """Return the rows in which two texts `[rows, tokens, features]` differ; all rows of another batch."""
        last = self._last  # one read: another thread may run the same copy
        if last is not None and last[0] is old and last[1] is new:
            return last[2]
        if old.shape != new.shape or new.dim() < 2:
            rows = list(range(len(new)))
        else:
            rows = cast("list[int]", (old != new).flatten(1).any(dim=1).nonzero().flatten().tolist())
        self._last = old, new, rows
        return rows


class _CachedModule(nn.Module):
    """Caches a module's output for the last text, row by row if a row alone gives the bits that it has in the batch."""

    def __init__(self, module: nn.Module, changes: _TextChanges) -> None:
        super().__init__()
        self._module = module
        self._changes = changes
        self._cached: tuple[torch.Tensor, Any] | None = None
        self._has_independent_rows: bool | None = None  # None: not known yet

    def forward(self, text: torch.Tensor) -> Any:
        cached = self._cached  # one read: another thread may run the same copy
        if cached is not None and cached[0] is text:
            return cached[1]
        output = self._module(text) if cached is None else self._read_changed_rows(*cached, text)
        self._cached = text, output
        return output

    def _read_changed_rows(self, old_text: torch.Tensor, old_output: Any, text: torch.Tensor) -> Any:
        rows = self._changes.list_changed_rows(old_text, text)
        if not rows:
            return old_output
        if len(rows) > len(text) // 2 or not self._check_rows(text):
            return self._module(text)
        output = old_output.clone()
        for row in rows:
            output[row] = self._module(text[row : row + 1])[0]
        return output

    def _check_rows(self, text: torch.Tensor) -> bool:
        """Return whether each row alone gives the bits that it has in the batch, as it was with the first such text."""
        if self._has_independent_rows is None:
            try:
                self._has_independent_rows = self._compare_rows(text)
            except RuntimeError as error:  # an operator that refuses this shape
                log.info("the rows of a text are not read alone: %s", error)
                self._has_independent_rows = False
        return self._has_independent_rows

    def _compare_rows(self, text: torch.Tensor) -> bool:
        whole = self._module(text)
        return isinstance(whole, torch.Tensor) and all(
            torch.equal(self._module(text[row : row + 1])[0], whole[row]) for row in range(len(text))
        )


class _PackedLinear(nn.Module):
    """y = x·Wᵀ + b, with W in oneDNN's blocks for a given number of rows."""

    def __init__(self, module: Any, shape: torch.Size) -> None:
        super().__init__()
        # callers ask a layer's weight for its dtype
        self.weight = module.weight
        self.bias = module.bias
        self._blocks = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), math.prod(shape[:-1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._blocks, self.bias, "none", [], "")


class _PackedConvolution(nn.Module):
    """A 2D convolution with weights in oneDNN's blocks for one input shape."""

    def __init__(self, module: Any, shape: torch.Size) -> None:
        super().__init__()
        self.weight = module.weight
        self.bias = module.bias
        self._options = (module.padding, module.stride, module.dilation, module.groups)
        self._blocks = torch.ops.mkldnn._reorder_convolution_weight(module.weight.detach(), *self._options, list(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, self._blocks, self.bias, *self._options, "none", [], "")


class _PackedTransposedConvolution(nn.Module):
    """A 2D transposed convolution with weights in oneDNN's blocks for one input shape."""

    def __init__(self, module: Any, shape: torch.Size) -> None:
        super().__init__()
        self.weight = module.weight
        self.bias = module.bias
        self._options = (module.padding, module.output_padding, module.stride, module.dilation, module.groups)
        self._blocks = torch.ops.mkldnn._reorder_convolution_transpose_weight(
            module.weight.detach(), *self._options, list(shape)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._convolution_transpose_pointwise(
            x, self._blocks, self.bias, *self._options, "none", [], ""
        )


_PACKED_LAYERS: dict[type[nn.Module], Callable[[Any, torch.Size], nn.Module]] = {
    nn.Linear: _PackedLinear,
    nn.Conv2d: _PackedConvolution,
    nn.ConvTranspose2d: _PackedTransposedConvolution,
}
