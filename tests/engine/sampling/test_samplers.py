"""A sampler's name selects the right scheduler for a model, or one sentence says why there is none."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from engine.contract import PIPELINE_SAMPLERS, Sampler
from engine.contract.fields import SECOND_ORDER_SAMPLERS
from engine.sampling import SAMPLERS, TABLED, NotTabled, build_scheduler, is_flow, plan, samplers_for

SD15: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "skip_prk_steps": True,
}
ZERO_SNR = SD15 | {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
SD3: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 1000}
FLUX = SD3 | {"use_dynamic_shifting": True}
SANA: dict[str, Any] = {
    "_class_name": "DPMSolverMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "beta_schedule": "linear",
}
FLOWS = ("euler", "dpmpp_2m", "unipc", "dpmpp_3m", "native")


def test_every_sampler_has_either_a_plan_or_a_whole_pipeline() -> None:
    assert get_args(Sampler) == SAMPLERS
    assert (*TABLED, *PIPELINE_SAMPLERS) == SAMPLERS
    assert set(TABLED) == {
        "ddpm",
        "ddim",
        "euler",
        "euler_karras",
        "euler_ancestral",
        "dpmpp_2m",
        "dpmpp_2m_karras",
        "dpmpp_2m_sde",
        "lcm",
    }


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (SD15, SAMPLERS),
        (ZERO_SNR, tuple(name for name in SAMPLERS if name not in ("heun", "kdpm2"))),
        (SD15 | {"prediction_type": "sample"}, tuple(n for n in SAMPLERS if n not in ("euler_ancestral", "kdpm2"))),
        (SD3, ("euler", "dpmpp_2m", "heun", "unipc", "dpmpp_3m", "native")),
        (SANA, ("euler", "dpmpp_2m", "heun", "unipc", "dpmpp_3m", "native")),
        (FLUX, FLOWS),
        (SD3 | {"_class_name": "FlowMatchHeunDiscreteScheduler"}, ("euler", "dpmpp_2m", "heun", *FLOWS[2:])),
        (SD3 | {"invert_sigmas": True}, ("euler", "native")),
        ({"_class_name": "EDMEulerScheduler", "sigma_max": 80.0}, ("native",)),
        ({"_class_name": "SCMScheduler"}, ("native",)),
        ({"beta_schedule": "linear"}, SAMPLERS[:-1]),
    ],
)
def test_each_configuration_offers_its_samplers_and_refuses_the_others(
    config: dict[str, Any], names: tuple[str, ...]
) -> None:
    assert samplers_for(config) == names
    for name in names:
        assert build_scheduler(config, name) is not None
    for name in set(SAMPLERS) - set(names):
        with pytest.raises(ValueError, match=r"^(The sampler|This model)[^.]+\.$") as error:
            plan(config, name, 4)
        assert not isinstance(error.value, NotTabled)


@pytest.mark.parametrize(
    ("config", "sampler", "kind", "fixed_settings"),
    [
        (SD15, "ddpm", "DDPMScheduler", {}),
        (SD15, "ddim", "DDIMScheduler", {}),
        (SD15, "euler", "EulerDiscreteScheduler", {"use_karras_sigmas": False}),
        (SD15, "euler_karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        (SD15, "euler_ancestral", "EulerAncestralDiscreteScheduler", {}),
        (SD15, "dpmpp_2m", "DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "dpmsolver++"}),
        (SD15, "dpmpp_2m_karras", "DPMSolverMultistepScheduler", {"solver_order": 2, "use_karras_sigmas": True}),
        (SD15, "dpmpp_2m_sde", "DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
        (SD15, "dpmpp_3m", "DPMSolverMultistepScheduler", {"solver_order": 3, "algorithm_type": "dpmsolver++"}),
        (SD15, "lcm", "LCMScheduler", {"original_inference_steps": 50}),
        (SD15, "heun", "HeunDiscreteScheduler", {}),
        (SD15, "unipc", "UniPCMultistepScheduler", {}),
        (SD15, "kdpm2", "KDPM2DiscreteScheduler", {}),
        (SD15, "native", "PNDMScheduler", {"skip_prk_steps": True}),
        (SD3, "euler", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        (SD3, "dpmpp_2m", "DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0}),
        (SD3, "dpmpp_2m", "DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "solver_order": 2}),
        (FLUX, "dpmpp_2m", "DPMSolverMultistepScheduler", {"use_dynamic_shifting": True}),
        (SD3, "heun", "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
        (SD3, "unipc", "UniPCMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0}),
        (SANA, "euler", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        (SANA, "dpmpp_3m", "DPMSolverMultistepScheduler", {"solver_order": 3, "use_flow_sigmas": True}),
        (SANA, "native", "DPMSolverMultistepScheduler", {"flow_shift": 3.0, "solver_order": 2}),
    ],
)
def test_a_sampler_builds_its_scheduler_for_the_model(
    config: dict[str, Any], sampler: str, kind: str, fixed_settings: dict[str, Any]
) -> None:
    scheduler = build_scheduler(config, sampler)
    assert type(scheduler).__name__ == kind
    config_of_scheduler = scheduler.config
    assert {name: config_of_scheduler[name] for name in fixed_settings} == fixed_settings
    for name in ("beta_schedule", "beta_start", "beta_end"):  # the noise schedule of training never changes
        assert name not in config_of_scheduler or name not in config or config_of_scheduler[name] == config[name]


def test_solver_settings_of_the_configuration_are_kept() -> None:
    options = {
        "final_sigmas_type": "sigma_min",
        "euler_at_final": True,
        "lower_order_final": False,
        "solver_type": "heun",
    }
    config_of_scheduler = build_scheduler(SD15 | options, "dpmpp_2m").config
    assert {name: config_of_scheduler[name] for name in options} == options
    assert build_scheduler(SD15 | {"original_inference_steps": 100}, "lcm").config["original_inference_steps"] == 100


def test_latents_are_clipped_only_if_the_configuration_says_so() -> None:
    """diffusers' DDPM clips by default, which suits pixels. Without a setting we assume latents and do not clip."""
    plain_config = {name: value for name, value in SD15.items() if name not in ("clip_sample", "steps_offset")}
    config_of_scheduler = build_scheduler(plain_config, "ddpm").config
    assert (config_of_scheduler["clip_sample"], config_of_scheduler["steps_offset"]) == (False, 1)
    assert plan(plain_config, "ddpm", 10).steps == 10
    with pytest.raises(NotTabled, match="clips or thresholds"):
        plan(plain_config | {"clip_sample": True}, "ddpm", 10)
    assert plan(plain_config | {"clip_sample": True}, "euler", 10).steps == 10  # Euler has no clipping in diffusers


@pytest.mark.parametrize("sampler", PIPELINE_SAMPLERS)
def test_samplers_of_whole_pipelines_have_no_plan(sampler: str) -> None:
    with pytest.raises(NotTabled, match=r"which cannot be batched by step\.$"):
        plan(SD15, sampler, 10)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_a_learned_variance_has_no_plan(sampler: str, variance: str) -> None:
    with pytest.raises(NotTabled, match="predicts the variance"):
        plan(SD15 | {"variance_type": variance}, sampler, 10)


def test_thresholding_has_no_plan() -> None:
    for sampler in ("ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "lcm"):
        with pytest.raises(NotTabled, match="clips or thresholds"):
            plan(SD15 | {"thresholding": True}, sampler, 10)


def test_an_unknown_sampler_is_refused() -> None:
    for call in (lambda: plan(SD15, "plms", 10), lambda: build_scheduler(SD15, "plms")):
        with pytest.raises(ValueError, match="no sampler called plms"):
            call()


@pytest.mark.parametrize(
    "name", ["os", "UNet2DModel", "StableDiffusionPipeline", "utils", "__name__", "a b", "", None, 7]
)
def test_a_configuration_can_name_only_a_scheduler(name: object) -> None:
    config = SD15 | {"_class_name": name}
    assert "native" not in samplers_for(config)
    with pytest.raises(ValueError, match="do not name its own scheduler"):
        build_scheduler(config, "native")


def test_an_unknown_noise_schedule_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^The sampler ddim does not know this model's noise schedule\.$"):
        plan(SD15 | {"beta_schedule": "of its own"}, "ddim", 10)


def test_flow_matching_is_recognised() -> None:
    assert [is_flow(config) for config in (SD15, ZERO_SNR, SD3, FLUX, SANA)] == [False, False, True, True, True]
    assert is_flow({"use_flow_sigmas": True})
    assert is_flow({"prediction_type": "flow_prediction"})


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # of the schedulers
@pytest.mark.parametrize(
    ("config", "sampler"),
    [*((SD15, name) for name in SAMPLERS if name != "native"), *((SD3, name) for name in (*FLOWS[:-1], "heun"))],
)
def test_the_price_counts_the_evaluations_that_the_scheduler_makes(config: dict[str, Any], sampler: Any) -> None:
    scheduler = build_scheduler(config, sampler)
    scheduler.set_timesteps(7)
    evaluations = 13 if sampler in SECOND_ORDER_SAMPLERS else 7
    assert len(scheduler.timesteps) == evaluations
