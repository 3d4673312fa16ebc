"""How large a module's blocks and layers are, from the names and shapes of its weights. Pure.

Offloading copies one group of layers at a time to the device: a block (an entry of one of the module's own lists, as
in a transformer), or a single layer where blocks are too large a part of the module, as in a UNet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

STREAMED_GROUPS = 2  # on a GPU: the group that computes, and the next one, which is copied meanwhile
MAX_BLOCK_SHARE = 0.25  # of the module; larger blocks are offloaded layer by layer
FILE_PREFIXES = ("model.diffusion_model.",)  # of names in the original programs' files


@dataclass(frozen=True)
class LayerSizes:
    """Parameters of a module: all of them, those outside its blocks, those of its largest block and largest layer."""

    total: int
    outside_blocks: int
    largest_block: int
    largest_layer: int

    @property
    def has_small_blocks(self) -> bool:
        """Whether offloading block by block leaves only a small part of the module on the device."""
        return self.largest_block > 0 and self._count_blocks(STREAMED_GROUPS) <= MAX_BLOCK_SHARE * self.total

    def count_at_once(self, *, is_streamed: bool) -> int:
        """Return the most parameters that are on the device at once while the layers are offloaded."""
        groups = STREAMED_GROUPS if is_streamed else 1
        at_once = self._count_blocks(groups) if self.has_small_blocks else groups * self.largest_layer
        return min(self.total, at_once)

    def _count_blocks(self, groups: int) -> int:
        return self.outside_blocks + groups * self.largest_block


def measure_layers(parameters: Iterable[tuple[str, int]]) -> LayerSizes:
    """Return the sizes from weights' names and parameter counts."""
    blocks = Counter[str]()
    layers = Counter[str]()
    outside_blocks = 0
    for name, count in parameters:
        own_name = next((name.removeprefix(each) for each in FILE_PREFIXES if name.startswith(each)), name)
        layers[own_name.rpartition(".")[0]] += count
        if (block := _find_block(own_name)) is None:
            outside_blocks += count
        else:
            blocks[block] += count
    total = sum(layers.values())
    return LayerSizes(total, outside_blocks, max(blocks.values(), default=0), max(layers.values(), default=0))


def _find_block(name: str) -> str | None:
    """Return `transformer_blocks.0` of `transformer_blocks.0.attn.to_q.weight`; None outside a list of the module."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else None
