"""The probe runs a scheduler to find whether a step is one linear evaluation. Anything else gets no table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteScheduler
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from engine.sampling.probe import NotTabled, probe

pytestmark = [  # diffusers' own
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
UNCLIPPED = BETAS | {"clip_sample": False}
FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
CLIPS = "clips or thresholds"
TWICE = "more than one evaluation"
BENDS = "not linear or remembers more"


@pytest.mark.parametrize("steps", [2, 3, 20])
@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, KDPM2DiscreteScheduler])
def test_schedulers_with_two_evaluations_a_step_get_no_table(kind: Any, steps: int) -> None:
    with pytest.raises(NotTabled, match=TWICE):
        probe(kind(**BETAS), steps)


def test_flow_schedulers_with_two_evaluations_a_step_get_no_table() -> None:
    with pytest.raises(NotTabled, match=TWICE):
        probe(FlowMatchHeunDiscreteScheduler(), 5)


@pytest.mark.parametrize("options", [{}, FLOW], ids=["noise", "flow"])
@pytest.mark.parametrize(
    ("kind", "first"),
    [(UniPCMultistepScheduler, 3), (lambda **options: DPMSolverMultistepScheduler(solver_order=3, **options), 5)],
    ids=["UniPC", "DPM++ 3M"],
)
def test_schedulers_that_remember_more_than_one_step_get_no_table(
    kind: Any, first: int, options: dict[str, Any]
) -> None:
    """Before step `first` they have a lower order, so a table would be right; from then on it is not."""
    for steps in (first, 20, 100):
        with pytest.raises(NotTabled, match=BENDS):
            probe(kind(**BETAS, **options), steps)


@pytest.mark.parametrize("kind", [PNDMScheduler, LMSDiscreteScheduler])
def test_other_multistep_schedulers_get_no_table(kind: Any) -> None:
    with pytest.raises(NotTabled):
        probe(kind(**BETAS), 20)


@pytest.mark.parametrize("clip_range", [1.0, 5.0, 1000.0, 1e5])
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_schedulers_that_clip_samples_get_no_table(kind: Any, clip_range: float) -> None:
    assert probe(kind(**BETAS, clip_sample=False), 10) is not None
    with pytest.raises(NotTabled, match=CLIPS):
        probe(kind(**BETAS, clip_sample=True, clip_sample_range=clip_range), 10)


def test_clipping_that_hides_a_division_by_zero_gets_no_table() -> None:
    """x0 of pure noise is infinite, and clipped it is 1: diffusers continues, a table cannot."""
    zero: dict[str, Any] = BETAS | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert probe(DDPMScheduler(**zero, clip_sample=False), 1) is None
    with pytest.raises(NotTabled, match=CLIPS):
        probe(DDPMScheduler(**zero, clip_sample=True), 1)


@pytest.mark.parametrize("ratio", [0.5, 0.995, 1.0])
@pytest.mark.parametrize("max_value", [1.0, 100.0, 1e9])
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_schedulers_that_threshold_samples_get_no_table(kind: Any, max_value: float, ratio: float) -> None:
    """This holds even if the threshold is the sample's largest value: it cuts nothing, but divides everything."""
    with pytest.raises(NotTabled, match=CLIPS):
        probe(kind(**BETAS, thresholding=True, sample_max_value=max_value, dynamic_thresholding_ratio=ratio), 10)


Fault = Callable[[torch.Tensor, torch.Tensor, list[torch.Tensor]], torch.Tensor]  # x', x, all earlier x → another x'

FAULTS: dict[str, Fault] = {
    "clips beyond 1": lambda y, x, history: y.clamp(-1, 1),
    "clips above 100 only": lambda y, x, history: y.clamp(max=100),
    "clips beyond 1e5": lambda y, x, history: y.clamp(-1e5, 1e5),
    "forgets what is small": lambda y, x, history: y * (y.abs() > 0.006),
    "rounds": lambda y, x, history: (y * 1000).round() / 1000,
    "bends a little": lambda y, x, history: y + 1e-7 * y * y.abs(),
    "bends for large values": lambda y, x, history: 1e7 * torch.tanh(y / 1e7),
    "adds a constant": lambda y, x, history: y + 1e-3,
    "adds noise of its own": lambda y, x, history: y + torch.randn(y.shape) * 1e-3,
    "multiplies x by itself": lambda y, x, history: y + 1e-3 * x * x,
    "remembers the step before": lambda y, x, history: y + (1e-6 * history[-1] if history else 0),
    "remembers two steps before": lambda y, x, history: y + (1e-3 * history[-2] if len(history) > 1 else 0),
    "remembers the beginning": lambda y, x, history: y + (1e-3 * history[0] if len(history) > 8 else 0),
    "clips at the last step": lambda y, x, history: y.clamp(-1, 1) if len(history) == 9 else y,
}


def build_spoilt_scheduler(fault: Fault, kind: Any = DDIMScheduler) -> Any:
    """Builds a scheduler with `fault` applied to each step."""

    class Spoilt(kind):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            result = super().step(*args, **kwargs)
            x = args[2].as_subclass(torch.Tensor)
            history = self.__dict__.setdefault("past", [])
            result["prev_sample"] = fault(result["prev_sample"].as_subclass(torch.Tensor), x, history)
            history.append(x)
            return result

    return Spoilt(**{DDIMScheduler: UNCLIPPED, EulerDiscreteScheduler: BETAS}.get(kind, {}))


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_a_step_that_is_not_linear_gets_no_table(fault: Fault, kind: Any) -> None:
    torch.manual_seed(0)
    assert probe(build_spoilt_scheduler(lambda y, x, history: y, kind), 10) is not None
    with pytest.raises(NotTabled):
        probe(build_spoilt_scheduler(fault, kind), 10)


class TwoDraws(DDPMScheduler):
    def step(self, *args: Any, generator: Any = None, **kwargs: Any) -> Any:
        result: Any = super().step(*args, generator=generator, **kwargs)
        shape = result["prev_sample"].shape
        result["prev_sample"] = result["prev_sample"] + 0.1 * torch.randn(shape, generator=generator)
        return result


class ClippedEstimate(DDIMScheduler):
    def step(self, *args: Any, **kwargs: Any) -> Any:
        result: Any = super().step(*args, **kwargs)
        result["pred_original_sample"] = result["pred_original_sample"].clamp(-50, 50)
        return result


class NoisyEstimate(DDPMScheduler):
    def step(self, *args: Any, generator: Any = None, **kwargs: Any) -> Any:
        result: Any = super().step(*args, generator=generator, **kwargs)
        result["pred_original_sample"] = result["prev_sample"]
        return result


class LateEstimate(DPMSolverMultistepScheduler):
    def step(self, *args: Any, **kwargs: Any) -> Any:
        result: Any = super().step(*args, **kwargs)
        result["pred_original_sample"] = result["prev_sample"]  # contains the x0 of the step before
        return result


class ClippedInput(DDIMScheduler):
    def scale_model_input(self, sample: Any, timestep: Any = None) -> Any:
        return sample.clamp(-50, 50)


class MissingEstimate(DDIMScheduler):
    def step(self, *args: Any, **kwargs: Any) -> Any:
        return {"prev_sample": super().step(*args, **kwargs)["prev_sample"]}  # pyright: ignore


@pytest.mark.parametrize(
    "kind", [TwoDraws, ClippedEstimate, NoisyEstimate, LateEstimate, ClippedInput, MissingEstimate]
)
def test_other_draws_estimates_or_inputs_get_no_table(kind: Any) -> None:
    """Two draws a step; an x0 not linear in input and output alone, or missing; an input other than c·x."""
    with pytest.raises(NotTabled):
        probe(kind(**(BETAS if kind is LateEstimate else UNCLIPPED)), 10)
