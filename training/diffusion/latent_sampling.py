"""Sampling by a plan's table, from noise and embeddings to latents, without jobs: for the lab and the evaluation.

The engine takes prompts, and jobs that come and go. But a point between two prompts has no text, and a thousand
evaluation pictures need no fair order. It accepts only plans that draw no noise on the way (DDIM, DPM++ 2M): two
pictures then differ only by their texts or their start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.contract import FULL_INTERVAL, Dtype, JobRejected, is_in_interval
from engine.models.family import Family, TokenConditioned
from engine.sampling import COLUMNS, Plan

MAX_ROWS = 16  # of a forward over latents of the embedded model's size or smaller
MAX_LATENTS = 16 * 16  # latents of a row at that size; larger rows need more memory, so fewer share a forward
OnStep = Callable[[int, int], None]  # (steps done, of)


@dataclass(frozen=True)
class SamplingInput:
    """One picture to sample: its start, and its texts `[rows, tokens, features]`, the base first.

    `coefficients` has one for each further text: out = base + Σ coefficient·(row - base). That holds in the steps of
    `interval`, a pair of fractions; elsewhere only the last text is predicted (Kynkäänniemi et al. 2024).
    """

    start_latents: torch.Tensor
    conditioning: torch.Tensor
    coefficients: tuple[float, ...]
    interval: tuple[float, float] = FULL_INTERVAL

    def inputs_at(self, step: int, steps: int) -> tuple[torch.Tensor, tuple[float, ...]]:
        """Return the texts and coefficients of this step."""
        if is_in_interval(self.interval, step, steps):
            return self.conditioning, self.coefficients
        return self.conditioning[-1:], ()


def initial_noise(family: Family, seed: int) -> torch.Tensor:
    """Return a seed's noise at the native size, as the engine and diffusers draw it."""
    return torch.randn(family.latent_shape(family.size, family.size), generator=torch.Generator().manual_seed(seed))


def build_input(
    family: TokenConditioned,
    text: torch.Tensor,
    guidance: float,
    start_latents: torch.Tensor,
    interval: tuple[float, float] = FULL_INTERVAL,
) -> SamplingInput:
    """Return one text with classifier-free guidance; at guidance 1 the empty text cancels out."""
    if guidance == 1:
        return SamplingInput(start_latents, text[None], ())
    return SamplingInput(start_latents, torch.stack([family.encode_text(""), text]), (guidance,), interval)


@torch.inference_mode()
def sample_latents(
    family: Family,
    plan: Plan,
    inputs: Sequence[SamplingInput],
    first_step: int = 0,
    on_step: OnStep = lambda done, total_steps: None,
    *,
    dtype: Dtype = "float32",
    rows: int = MAX_ROWS,
) -> list[torch.Tensor]:
    """Return the finished latents of each input. `first_step`: the step that their start stands at (0: pure noise)."""
    if plan.table[:, COLUMNS.index("N")].any() or (first_step and plan.has_history):
        raise ValueError("This plan draws noise on the way, or needs a step from before the start.")
    finished: list[torch.Tensor] = []
    batches = _batches(inputs, rows)
    steps_per_batch = plan.steps - first_step
    for number, batch in enumerate(batches):
        x = torch.stack([sampling_input.start_latents for sampling_input in batch]).to(family.device)
        previous_x0 = torch.zeros_like(x)
        for step in range(first_step, plan.steps):
            x, previous_x0 = _step(family, plan, step, x, previous_x0, batch, dtype)
            on_step(number * steps_per_batch + step - first_step + 1, len(batches) * steps_per_batch)
        if not x.isfinite().all():
            sentence = "The picture came out as numbers that are not finite: smaller weights in its prompt may help."
            raise JobRejected(sentence, "member")
        finished += list(x)
    return finished


@torch.inference_mode()
def predict_x0(family: Family, plan: Plan, step: int, sampling_input: SamplingInput) -> torch.Tensor:
    """Return the x0 that the network predicts from the input's start at this step."""
    x = sampling_input.start_latents[None].to(family.device)
    return _step(family, plan, step, x, torch.zeros_like(x), [sampling_input], "float32")[1][0]


def noise_level(plan: Plan, step: int) -> tuple[float, float]:
    """Return (alpha, sigma) of this step: x = alpha·x0 + sigma·noise."""
    row = dict(zip(COLUMNS, plan.table[step].tolist(), strict=True))
    return row["alpha"], row["sigma"]


def timestep(plan: Plan, step: int) -> int:
    return int(plan.table[step, COLUMNS.index("t")])


def _step(
    family: Family,
    plan: Plan,
    step: int,
    x: torch.Tensor,
    previous_x0: torch.Tensor,
    batch: Sequence[SamplingInput],
    dtype: Dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (x', x0) of each input after this step; `previous_x0` is the previous step's."""
    column = dict(zip(COLUMNS, plan.table[step].astype(np.float32).tolist(), strict=True))
    step_inputs = [sampling_input.inputs_at(step, plan.steps) for sampling_input in batch]
    counts = [len(conditioning) for conditioning, _ in step_inputs]
    rows = (column["c"] * x).repeat_interleave(torch.tensor(counts, device=x.device), dim=0)
    timesteps = torch.full((len(rows),), column["t"], device=x.device)
    texts = torch.cat([texts for texts, _ in step_inputs]).to(x.device)
    outputs = torch.split(family.denoise(rows, timesteps, (texts,), dtype), counts)
    guided = [_apply_guidance(out, weights) for out, (_, weights) in zip(outputs, step_inputs, strict=True)]
    guided_out = torch.stack(guided)
    next_x = column["A"] * x + column["B"] * guided_out + column["M"] * previous_x0
    return next_x, column["P"] * x + column["Q"] * guided_out


def _apply_guidance(out: torch.Tensor, coefficients: tuple[float, ...]) -> torch.Tensor:
    """Return classifier-free guidance (Ho & Salimans 2022) for any number of texts (Liu et al. 2022, equation 11)."""
    base = guided_out = out[0]
    for row, coefficient in zip(out[1:], coefficients, strict=True):
        guided_out = guided_out + coefficient * (row - base)
    return guided_out


def _batches(inputs: Sequence[SamplingInput], rows: int) -> list[list[SamplingInput]]:
    """Group the inputs in order, as `rows` and their size allow; a larger one gets its own batch."""
    batches: list[list[SamplingInput]] = []
    filled_rows = 0
    for candidate in inputs:
        height, width = candidate.start_latents.shape[-2:]
        filled_rows += len(candidate.conditioning)
        if batches and filled_rows <= min(rows, rows * MAX_LATENTS // (height * width)):
            batches[-1].append(candidate)
        else:
            batches.append([candidate])
            filled_rows = len(candidate.conditioning)
    return batches
