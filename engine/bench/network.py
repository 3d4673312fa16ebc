"""The network without our engine: the gain from batching, and the time of a forward."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from statistics import median

import torch

from engine.bench.crowd import USERS
from engine.bench.row import Row
from engine.families.family import TORCH, Family
from engine.families.nets import placed
from engine.families.pipelined import Pipelined
from engine.job import Dtype
from engine.measurement import probe

ROUNDS = 15
WARMING = 3  # uncounted forwards: they build kernels and pack weights


def gain(family: Family, dtype: Dtype, rounds: int | None = None) -> float:
    """Return how much faster the network runs sixteen rows at once than two at a time: the most that batching can gain.

    Uses the pipeline's plain network, not our engine's forward.
    """
    few, many = (plain(family, rows, dtype) for rows in (2, 2 * USERS))
    times = [(clock(few), clock(many)) for _ in range((rounds or ROUNDS) + WARMING)][WARMING:]
    return USERS * median(each for each, _ in times) / median(each for _, each in times)


def packed_rows(family: Family, dtype: Dtype) -> list[Row]:
    """Compare our forward with packed weights against the plain network."""
    found = []
    for rows in (2, 2 * USERS):
        both = plain(family, rows, dtype), ours(family, rows, dtype)
        times = [(clock(both[0]), clock(both[1])) for _ in range(ROUNDS + WARMING)][WARMING:]
        figure = median(each for each, _ in times) / median(each for _, each in times)
        found.append(Row(f"a forward of {rows} rows, {dtype}: plain network / ours", figure, None, "×"))
    return found


def plain(family: Family, rows: int, dtype: Dtype) -> Callable[[], object]:
    """Return a function that runs one forward of the unmodified network at the native size."""
    x, t, texts = _inputs(family, rows)
    assert isinstance(family, Pipelined)  # the benchmark's families are
    net = placed(copy.deepcopy(getattr(family.pipeline, family.network)), family.device, dtype)
    kind = TORCH[dtype]

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        return net(x.to(kind), t, encoder_hidden_states=texts[0].to(kind), return_dict=False)[0]

    return forward


def ours(family: Family, rows: int, dtype: Dtype) -> Callable[[], object]:
    """Return a function that runs one forward of our engine."""
    x, t, texts = _inputs(family, rows)

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        return family.denoise(x, t, texts, dtype)

    return forward


def _inputs(family: Family, rows: int) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    x = torch.randn(rows, *family.latent_shape(family.size, family.size), device=family.device)
    texts = tuple(part.expand(rows, *part.shape) for part in family.condition("cat", probe(family)))
    return x, torch.full((rows,), 500.0, device=family.device), texts


def clock(run: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun
