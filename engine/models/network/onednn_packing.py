"""Packed weights (oneDNN): laid out once for recurring input shapes. Processors only, with the same bits.

For bfloat16, oneDNN wants the weights of convolutions and linear layers in blocks whose order depends on the input's
shape, and reorders them in every forward. Torch's compiler packs them when it freezes a network (`torch._inductor`,
`mkldnn_fusion.py`); its operators can be called directly. A packed copy with other bits is not used (float32 is never
equal): a picture must not depend on how often its shape came before. A copy also caches the output of its layers for a
recurring text. Where only some rows get another text, as when a picture is steered, these alone are read anew.
"""

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
from torch import nn

log = logging.getLogger(__name__)

FORWARDS_BEFORE_PACKING = 2  # forwards of a shape before it is packed
MAX_PACKED_BYTES = 512 * 2**20  # of all packed copies of a model
MAX_PARAMETERS = 100_000_000  # parameters: too few copies of a larger network would fit

Predict = Callable[[Any], torch.Tensor]  # runs one forward of the given network
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
        self, net: Any, shapes: Hashable, predict: Predict, recurring_inputs: Sequence[torch.Tensor] = ()
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


def _try_packing(net: Any, predict: Predict, recurring_inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Any]:
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
    """Return a copy that shares the parameters, with packable layers and readers of texts replaced."""
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
