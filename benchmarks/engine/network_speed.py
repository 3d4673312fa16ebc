"""The network without our engine: the gain from batching, and the time of a forward."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from statistics import median

import torch

from benchmarks.engine.workload import USERS
from benchmarks.report.figure_row import FigureRow
from engine.calibration.measurement import probe_recipe
from engine.contract import Dtype
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.family import TORCH_DTYPES, Family
from engine.models.network.network_copies import place_network

ROUNDS = 15
WARMUP_FORWARDS = 3  # uncounted forwards: they build kernels and pack weights


def measure_batch_speedup(family: Family, dtype: Dtype, rounds: int | None = None) -> float:
    """Return how much faster the network runs sixteen rows at once than two at a time: the most that batching can gain.

    Uses the pipeline's plain network, not our engine's forward.
    """
    run_few_rows, run_many_rows = (make_plain_forward(family, rows, dtype) for rows in (2, 2 * USERS))
    times = [(time_call(run_few_rows), time_call(run_many_rows)) for _ in range((rounds or ROUNDS) + WARMUP_FORWARDS)][
        WARMUP_FORWARDS:
    ]
    return USERS * median(each for each, _ in times) / median(each for _, each in times)


def measure_forward_rows(family: Family, dtype: Dtype) -> list[FigureRow]:
    """Compare our forward with packed weights against the plain network."""
    results = list[FigureRow]()
    for rows in (2, 2 * USERS):
        forwards = make_plain_forward(family, rows, dtype), make_engine_forward(family, rows, dtype)
        times = [(time_call(forwards[0]), time_call(forwards[1])) for _ in range(ROUNDS + WARMUP_FORWARDS)][
            WARMUP_FORWARDS:
        ]
        figure = median(each for each, _ in times) / median(each for _, each in times)
        results.append(FigureRow(f"a forward of {rows} rows, {dtype}: plain network / ours", figure, None, "×"))
    return results


def make_plain_forward(family: Family, rows: int, dtype: Dtype) -> Callable[[], object]:
    """Return a function that runs one forward of the unmodified network at the native size."""
    x, t, conditioning = _make_inputs(family, rows)
    assert isinstance(family, DiffusersFamily)  # the benchmark's families are
    network = place_network(copy.deepcopy(getattr(family.pipeline, family.network_name)), family.device, dtype)
    torch_dtype = TORCH_DTYPES[dtype]

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        return network(x.to(torch_dtype), t, encoder_hidden_states=conditioning[0].to(torch_dtype), return_dict=False)[
            0
        ]

    return forward


def make_engine_forward(family: Family, rows: int, dtype: Dtype) -> Callable[[], object]:
    """Return a function that runs one forward of our engine."""
    x, t, conditioning = _make_inputs(family, rows)

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        return family.denoise(x, t, conditioning, dtype)

    return forward


def _make_inputs(family: Family, rows: int) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    x = torch.randn(rows, *family.latent_shape(family.size, family.size), device=family.device)
    conditioning = tuple(
        part.expand(rows, *part.shape) for part in family.encode_conditioning("cat", probe_recipe(family))
    )
    return x, torch.full((rows,), 500.0, device=family.device), conditioning


def time_call(function: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    started_at = time.perf_counter()
    function()
    return time.perf_counter() - started_at
