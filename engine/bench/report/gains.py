"""Measures what batching, CUDA graphs, torch.compile and offload gain on this device.

On a GPU with Stable Diffusion 1.5's configuration, on a processor with the embedded model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch

from engine.bench.row import Row
from engine.families.family import Family
from engine.families.pipelined import Pipelined
from engine.families.recorded import WORTH
from engine.job import Dtype
from engine.measurement import probe

BATCHES = (2, 4, 8, 16)
ROUNDS = 5
COMPILED_ROUNDS = 10
NO_CARD = "not on a processor"
GRAPHS = ("CUDA graphs: a forward of 2 rows, off by on", "CUDA graphs: the same bits as without them")
COMPILE = "torch.compile: a forward of 2 rows, off by on"
OFFLOAD = "offload: memory of the card at rest, on by off"
VISIT = "offload: reading a text, on by off"
Load = Callable[[], Pipelined]


def gain_rows(load: Load, say: Callable[[str], None]) -> list[Row]:
    """Return the rows.

    `load` loads the same model anew each time. A part that fails says so in its rows; the others go on.
    """
    rows = list[Row]()
    for title, names, part in (
        ("rows together", tuple(_batch_name(count) for count in BATCHES), _batches),
        ("CUDA graphs", GRAPHS, _graphs),
        ("torch.compile", (COMPILE,), _compile),
        ("offload", (OFFLOAD, VISIT), _offload),
    ):
        say(title)
        try:
            rows += part(load)
        except Exception as error:  # the report must show any failure of a GPU
            note = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            rows += [Row(name, None, None, "×", note) for name in names]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return rows


def _batch_name(rows: int) -> str:
    return f"{rows} rows in a forward: rows a second, by one at a time"


def _batches(load: Load) -> Iterator[Row]:
    family = load()
    dtype = _dtype(family)
    one = _milliseconds(_forward(family, 1, dtype), family)
    for rows in BATCHES:
        together = _milliseconds(_forward(family, rows, dtype), family)
        note = f"{family.name}, {dtype}: {one:.3g} ms of one row, {together:.3g} ms of {rows}"
        yield Row(_batch_name(rows), rows * one / together, None, "×", note)


def _graphs(load: Load) -> Iterator[Row]:
    family = load()
    if family.device.type != "cuda":
        yield from (Row(name, None, None, "×", NO_CARD) for name in GRAPHS)
        return
    forward = _forward(family, 2, _dtype(family))
    plain_out, plain = forward(), _milliseconds(forward, family)
    family.forwards.record()
    for _ in range(WORTH + 1):
        forward()
    recorded = _milliseconds(forward, family)
    yield Row(GRAPHS[0], plain / recorded, None, "×", f"{plain:.3g} ms, with graphs {recorded:.3g} ms")
    yield Row(GRAPHS[1], float(torch.equal(forward(), plain_out)), "= 1", "")


def _compile(load: Load) -> Iterator[Row]:
    family = load()
    if family.device.type != "cuda":
        yield Row(COMPILE, None, None, "×", NO_CARD)
        return
    forward = _forward(family, 2, dtype := _dtype(family))
    plain_out, plain = forward(), _milliseconds(forward, family)
    net: Any = family.net(dtype)
    begun = time.perf_counter()
    net.forward = torch.compile(net.forward, dynamic=False)
    forward()
    built = time.perf_counter() - begun
    compiled = _milliseconds(forward, family, COMPILED_ROUNDS)
    far = float((forward() - plain_out).abs().max())
    note = f"{plain:.3g} ms, compiled {compiled:.3g} ms; {built:.0f} s to compile; largest difference {far:.2g}"
    yield Row(COMPILE, plain / compiled, None, "×", note)


def _offload(load: Load) -> Iterator[Row]:
    family = load()
    if family.device.type != "cuda":
        yield from (Row(name, None, None, "×", NO_CARD) for name in (OFFLOAD, VISIT))
        return
    before = _card_megabytes(family)
    plain = _milliseconds(_reading(family), family)
    family.offload()
    torch.cuda.empty_cache()
    after = _card_megabytes(family)
    visiting = _milliseconds(_reading(family), family)
    yield Row(OFFLOAD, after / before, None, "×", f"{before:.0f} MB, offloaded {after:.0f} MB")
    yield Row(VISIT, visiting / plain, None, "×", f"{plain:.3g} ms, offloaded {visiting:.3g} ms")


def _dtype(family: Pipelined) -> Dtype:
    return "bfloat16" if "bfloat16" in family.dtypes else family.dtypes[0]


def _forward(family: Pipelined, rows: int, dtype: Dtype) -> Callable[[], torch.Tensor]:
    """Return a function that runs our forward at the native size, on fixed values."""
    shape = family.latent_shape(family.size, family.size)
    x = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0)).to(family.device)
    texts = tuple(part.expand(rows, *part.shape) for part in family.condition("a cat", probe(family)))
    times = torch.full((rows,), 500.0, device=family.device)
    return lambda: family.denoise(x, times, texts, dtype)


def _reading(family: Pipelined) -> Callable[[], object]:
    def read() -> object:
        family.forget_texts()
        return family.condition("a cat", probe(family))

    return read


def _milliseconds(work: Callable[[], object], family: Family, rounds: int = ROUNDS) -> float:
    """Return the median; an uncounted first call builds kernels."""
    times = list[float]()
    for _ in range(rounds + 1):
        _wait(family)
        begun = time.perf_counter()
        work()
        _wait(family)
        times.append(1000 * (time.perf_counter() - begun))
    return median(times[1:])


def _wait(family: Family) -> None:
    if family.device.type == "cuda":
        torch.cuda.synchronize(family.device)


def _card_megabytes(family: Family) -> float:
    _wait(family)
    return torch.cuda.memory_allocated(family.device) / 2**20
