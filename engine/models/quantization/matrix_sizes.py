"""The bytes of quantised weights, from the shapes in the files' headers. Loads no weights.

Only the matrices of linear layers are quantised; embeddings, convolutions, norms and biases keep their number format.
The sizes are those of the layouts of torchao and bitsandbytes that `library_configs` chooses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

import torch

from engine.contract import Quantization

GROUP_SIZE = 64  # weights of a row that share one scale and zero point in int4
INT4_ROWS = 16  # the kernels of int4 take matrices whose rows are a multiple of this
# weights that share a scale, and scales that share theirs (Dettmers et al. 2023)
NF4_BLOCK = 64
NF4_OUTER_BLOCK = 256
# to which a GPU's layout of int4 pads a matrix
TILE_COLUMNS = 1024
TILE_ROWS = 8
_EMBEDDING = re.compile(
    r"(?:token_embedding|position_embedding|embed_tokens|shared|relative_attention_bias|wte|wpe|embeddings\.\w+"
    r"|class_embedding|patch_embedding|context_embedder_embedding|pos_embed)\.weight$"
)


class Matrix(NamedTuple):
    """A weight of two dimensions that is no embedding: a linear layer's, [out features, in features]."""

    name: str
    rows: int
    columns: int

    @property
    def parameters(self) -> int:
        return self.rows * self.columns


def find_matrix(name: str, shape: Iterable[int]) -> Matrix | None:
    """Return the tensor as the matrix of a linear layer; None for any other tensor."""
    sides = tuple(shape)
    if len(sides) != 2 or not name.endswith(".weight") or _EMBEDDING.search(name):
        return None
    return Matrix(name, sides[0], sides[1])


def is_quantizable(matrix: Matrix, quantization: Quantization) -> bool:
    """Whether the library stores this matrix in fewer bits; it leaves others as they are."""
    if quantization == "int4":
        return matrix.columns % GROUP_SIZE == 0 and matrix.rows % INT4_ROWS == 0
    return quantization != "none"


def count_matrix_bytes(matrix: Matrix, quantization: Quantization, device: torch.device, itemsize: int) -> int:
    """Return the bytes of a matrix; `itemsize`: bytes of a number that is not quantised."""
    if not is_quantizable(matrix, quantization):
        return itemsize * matrix.parameters
    if quantization == "int8":
        return matrix.parameters + 5 * matrix.rows  # a scale in float32 and a zero point for each row
    if quantization in ("float8", "llm_int8"):  # a scale in float32 for each row
        return matrix.parameters + 4 * matrix.rows
    if quantization == "int4":
        return _count_int4_bytes(matrix, device, itemsize)
    scales = math.ceil(matrix.parameters / NF4_BLOCK)
    return math.ceil(matrix.parameters / 2) + scales + 4 * math.ceil(scales / NF4_OUTER_BLOCK)


def _count_int4_bytes(matrix: Matrix, device: torch.device, itemsize: int) -> int:
    rows = matrix.rows
    columns = matrix.columns
    if device.type == "cuda":
        rows = _pad(rows, TILE_ROWS)
        columns = _pad(columns, TILE_COLUMNS)
    return rows * columns // 2 + 2 * itemsize * rows * columns // GROUP_SIZE


def _pad(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
