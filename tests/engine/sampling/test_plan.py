"""Plans against diffusers' own schedulers, over whole trajectories with an affine, recorded network.

The oracle runs twice: in plain float32, and in double precision, where only the arithmetic can differ.
"""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling import COLUMNS, TABLED, NotTabled, TimestepOptions, build_scheduler, plan
from engine.sampling.probe import probe
from shared.scheduler_trajectories import (
    EMBEDDED,
    EPSILON,
    SD3,
    VELOCITY,
    Config,
    Trajectory,
    relative_difference,
    run_plan,
    run_scheduler,
    set_timesteps,
)

LEADING = EPSILON | {"timestep_spacing": "leading"}
FLUX = SD3 | {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
QWEN = FLUX | {"shift_terminal": 0.02, "shift": 1.0}
SANA: Config = {
    "_class_name": "DPMSolverMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "beta_schedule": "linear",
}
SAMPLERS = [*((name, 0.0) for name in TABLED), ("ddim", 0.6), ("ddim", 1.0)]

FLOAT32 = 1e-5
DOUBLE = 1e-11
SDE = 2e-7  # DPM++ SDE multiplies its noise in float32 for latents of every format


def oracle(
    config: Config,
    sampler: str,
    steps: int,
    eta: float = 0.0,
    timestep_options: TimestepOptions = TimestepOptions(),
    *,
    double: bool,
    sets_begin_index: bool = True,
) -> Trajectory:
    """`sets_begin_index`: as most pipelines do; it matters only if two steps share the first timestep."""
    scheduler = build_scheduler(config, sampler)
    set_timesteps(scheduler, steps, timestep_options)
    if sets_begin_index and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return run_scheduler(scheduler, eta, double)


def errors(
    config: Config, sampler: str, steps: int, eta: float = 0.0, timestep_options: TimestepOptions = TimestepOptions()
) -> tuple[float, float]:
    """Returns the plan's distance from diffusers in float32 and in double precision."""
    table = plan(config, sampler, steps, eta, timestep_options)
    assert table.steps == steps
    draws = torch.float32 if sampler == "dpmpp_2m_sde" else None
    single, double = (oracle(config, sampler, steps, eta, timestep_options, double=each) for each in (False, True))
    return relative_difference(run_plan(table), single), relative_difference(
        run_plan(table, double=True, draws=draws), double
    )


def schedule(config: Config, sampler: str, steps: int) -> Config:
    """The configuration; LCM needs as many distillation steps as it takes steps."""
    return config | {"original_inference_steps": max(steps, 50)} if sampler == "lcm" else config


@pytest.mark.sampled
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("config", [EPSILON, VELOCITY], ids=["epsilon", "v"])
@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
def test_a_plan_equals_the_scheduler(sampler: str, eta: float, config: Config, spacing: str) -> None:
    for steps in (1, 2, 20, 50):
        differences = errors(config | {"timestep_spacing": spacing}, sampler, steps, eta)
        assert differences[0] <= FLOAT32, steps
        assert differences[1] <= (SDE if sampler == "dpmpp_2m_sde" else DOUBLE), steps


LATER_STARTS = [
    pytest.param(config, *sampler_and_eta, id=f"{name}-{sampler_and_eta[0]}-{sampler_and_eta[1]}")
    for name, config in (("epsilon", EPSILON), ("v", VELOCITY), ("flow", SD3))
    for sampler_and_eta in SAMPLERS
    if config is not SD3 or sampler_and_eta[0] in ("euler", "dpmpp_2m")
]


@pytest.mark.parametrize(("config", "sampler", "eta"), LATER_STARTS)
def test_a_plan_that_starts_later_equals_the_scheduler_that_starts_there(
    sampler: str, eta: float, config: Config
) -> None:
    """Image-to-image pipelines call `set_begin_index`; a multistep sampler has no history there."""
    for steps, first in ((10, 0), (10, 1), (20, 8), (20, 18), (20, 19), (50, 20)):
        table = plan(config, sampler, steps, eta)
        differences = []
        for double in (False, True):
            scheduler = build_scheduler(config, sampler)
            set_timesteps(scheduler, steps)
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(first)
            expected = run_scheduler(scheduler, eta, double, first)
            draws = torch.float32 if sampler == "dpmpp_2m_sde" else None
            differences.append(
                relative_difference(
                    run_plan(table.starting_at(first), double, draws if double else None, first), expected
                )
            )
        assert differences[0] <= FLOAT32, (steps, first)
        assert differences[1] <= (SDE if sampler == "dpmpp_2m_sde" else DOUBLE), (steps, first)


@pytest.mark.parametrize("sampler", TABLED)
def test_a_plan_that_starts_later_counts_its_draws_from_there(sampler: str) -> None:
    full_plan = plan(EPSILON, sampler, 12)
    later_plan = full_plan.starting_at(5)
    assert [later_plan.has_noise_draw(k) for k in range(5, 12)] == [full_plan.has_noise_draw(k) for k in range(5, 12)]
    assert later_plan.draw_counts[5] == 1
    assert later_plan.draw_counts[12] == 1 + sum(full_plan.has_noise_draw(k) for k in range(5, 12))


@pytest.mark.parametrize("sampler", TABLED)
def test_the_noise_level_of_a_step_equals_the_schedulers_add_noise(sampler: str) -> None:
    table = plan(EPSILON, sampler, 12)
    scheduler = build_scheduler(EPSILON, sampler)
    set_timesteps(scheduler, 12)
    clean = torch.full((1, 1, 1, 1), 2.0)
    noise = torch.full((1, 1, 1, 1), -3.0)
    for k, t in enumerate(scheduler.timesteps):
        alpha, sigma = table.noise_level(k)
        expected = float(scheduler.add_noise(clean, noise, t[None]))
        assert alpha * 2.0 - sigma * 3.0 == pytest.approx(expected, rel=1e-5)
    assert table.noise_level(12) == (1.0, 0.0)


@pytest.mark.parametrize(("sampler", "eta"), [pair for pair in SAMPLERS if pair != ("ddim", 1.0)])
def test_a_plan_equals_the_scheduler_at_zero_terminal_snr(sampler: str, eta: float) -> None:
    for steps in (1, 2, 20, 50):
        single, double = errors(EMBEDDED, sampler, steps, eta)
        assert double <= (SDE if sampler == "dpmpp_2m_sde" else DOUBLE), steps
        # Euler starts at sigma 4096, where diffusers loses digits in float32 (x + (x - x0)·dt/sigma cancels); the table
        # does not, so they differ by diffusers' rounding, which also depends on the processor. The difference shrinks
        # with more steps: 3e-4 at one and two, 1.1e-5 at twenty.
        tolerance = 4e-4 if steps <= 2 else max(FLOAT32, 4e-4 / steps)
        assert single <= (tolerance if sampler.startswith("euler") else FLOAT32), steps


@pytest.mark.sampled
@pytest.mark.parametrize(("sampler", "eta"), [pair for pair in SAMPLERS if pair != ("ddim", 1.0)])
def test_a_plan_of_a_thousand_steps_equals_the_scheduler(sampler: str, eta: float) -> None:
    """Every second sampler has the other configuration; fewer steps have each pair."""
    config = [EMBEDDED, EPSILON][SAMPLERS.index((sampler, eta)) % 2]
    single, double = errors(schedule(config, sampler, 1000), sampler, 1000, eta)
    assert single <= FLOAT32
    assert double <= (SDE if sampler == "dpmpp_2m_sde" else DOUBLE)


def levels(steps: int) -> tuple[float, ...]:
    """The noise levels that the pipelines of Flux, Qwen-Image and Z-Image pass to the scheduler."""
    return tuple(torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64).tolist())


@pytest.mark.parametrize("has_own_sigmas", [False, True], ids=["", "own sigmas"])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize(
    ("config", "mu"), [(SD3, None), (FLUX, 0.9), (QWEN, 0.7), (SANA, None)], ids=["SD3", "Flux", "Qwen", "Sana"]
)
def test_a_plan_equals_the_scheduler_of_flow_matching(
    config: Config, mu: float | None, sampler: str, has_own_sigmas: bool
) -> None:
    for steps in (2, 20, 50) if config is QWEN else (1, 2, 20, 50):  # one step of Qwen is refused, see below
        differences = errors(
            config, sampler, steps, timestep_options=TimestepOptions(mu, levels(steps) if has_own_sigmas else None)
        )
        assert max(differences) <= FLOAT32, steps
        assert differences[1] <= DOUBLE, steps


@pytest.mark.sampled
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize(
    "timestep_options", [TimestepOptions(0.9, levels(1000)), TimestepOptions(0.9)], ids=["own sigmas", ""]
)
def test_a_flow_plan_of_a_thousand_steps_equals_the_scheduler(sampler: str, timestep_options: TimestepOptions) -> None:
    # Here diffusers in float32 differs from its double precision by 1.4e-5, the plan in float32 by 4.7e-6. So both
    # precisions of the plan are compared with diffusers in double precision.
    table = plan(FLUX, sampler, 1000, timing=timestep_options)
    reference = oracle(FLUX, sampler, 1000, 0.0, timestep_options, double=True)
    assert relative_difference(run_plan(table), reference) <= FLOAT32
    assert relative_difference(run_plan(table, double=True), reference) <= DOUBLE


def test_the_comparison_notices_a_wrong_coefficient() -> None:
    table = plan(EPSILON, "dpmpp_2m", 20)
    wrong_table = table.table.copy()
    wrong_table[7, COLUMNS.index("A")] *= 1 + 1e-4
    assert relative_difference(run_plan(replace(table, table=wrong_table)), run_plan(table)) > FLOAT32


def test_diffusers_needs_a_begin_index_if_two_steps_share_the_first_timestep() -> None:
    with pytest.raises(IndexError):  # it starts at the second of them and runs past its last step
        oracle(EMBEDDED, "dpmpp_2m_karras", 50, double=False, sets_begin_index=False)
    assert errors(EMBEDDED, "dpmpp_2m_karras", 50) <= (FLOAT32, DOUBLE)


@pytest.mark.parametrize("sampler", ["ddpm", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("steps", [61, 103])
def test_trailing_spacing_does_not_count_down_to_timestep_minus_one(sampler: str, steps: int) -> None:
    """For 62 step counts diffusers runs one step too many, by rounding. The right result is without it."""
    scheduler = build_scheduler(EMBEDDED, sampler)
    right = build_scheduler(EMBEDDED, sampler)
    set_timesteps(scheduler, steps)
    assert (len(scheduler.timesteps), int(scheduler.timesteps[-1])) == (steps + 1, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's, of the schedulers' np.array(tensor)
        right.set_timesteps(timesteps=scheduler.timesteps[:-1].tolist())
    table = plan(EMBEDDED, sampler, steps)
    assert table.steps == steps
    assert relative_difference(run_plan(table, double=True), run_scheduler(right, double=True)) <= DOUBLE


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("config", "sampler", "steps", "diffusers_error"),
    [
        (LEADING, "ddpm", 1000, IndexError),  # counts to timestep 1000 of 0…999
        (LEADING, "ddim", 1000, IndexError),
        (LEADING, "dpmpp_2m", 1000, None),  # every timestep is the same one
        (LEADING, "dpmpp_2m_sde", 1000, None),
        (EPSILON | {"timestep_spacing": "linspace"}, "dpmpp_2m", 1000, None),  # two timesteps are the same
        (EPSILON | {"timestep_spacing": "linspace"}, "dpmpp_2m_sde", 1000, None),
        (EPSILON | {"rescale_betas_zero_snr": True}, "ddpm", 20, None),  # x0 of pure noise, from its noise
        (EPSILON | {"rescale_betas_zero_snr": True}, "ddim", 20, None),
        (EPSILON | {"rescale_betas_zero_snr": True}, "lcm", 20, None),
        (EPSILON, "lcm", 51, ValueError),  # distilled from 50
        (EPSILON, "ddpm", 1001, ValueError),
        (QWEN, "euler", 1, None),  # stretches its one noise level to another end
    ],
)
def test_schedules_that_fail_in_diffusers_are_refused(
    config: Config, sampler: str, steps: int, diffusers_error: type[Exception] | None
) -> None:
    timestep_options = TimestepOptions(0.7) if config is QWEN else TimestepOptions()
    if diffusers_error is None:
        assert not oracle(config, sampler, steps, 0.0, timestep_options, double=True)[-1].isfinite().all()
    else:
        with pytest.raises(diffusers_error):
            oracle(config, sampler, steps, 0.0, timestep_options, double=True)
    with pytest.raises(ValueError, match=f"^The sampler {sampler} cannot take {steps} steps with this") as error:
        plan(config, sampler, steps, timing=timestep_options)
    assert not isinstance(error.value, NotTabled)


def test_threads_that_come_together_wait_for_one_probe_and_not_for_another_samplers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = 37
    probed_steps = list[int]()
    release = threading.Event()

    def probe_slowly(*arguments: Any) -> Any:
        probed_steps.append(arguments[1])
        if arguments[1] == steps:
            assert release.wait(10)
        return probe(*arguments)

    monkeypatch.setattr("engine.sampling.probe", probe_slowly)
    with ThreadPoolExecutor(4) as threads:
        plans = [threads.submit(plan, EPSILON, "ddpm", steps) for _ in range(4)]
        plan(EPSILON, "euler", steps + 1)
        release.set()
    assert len({id(each.result()) for each in plans}) == 1
    assert probed_steps.count(steps) == 1


SCHEDULES = st.fixed_dictionaries(
    {
        "prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample"]),
        "timestep_spacing": st.sampled_from(["trailing", "leading", "linspace"]),
        "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
        "rescale_betas_zero_snr": st.booleans(),
        "final_sigmas_type": st.sampled_from(["zero", "sigma_min"]),
        "lower_order_final": st.booleans(),
        "euler_at_final": st.booleans(),
        "solver_type": st.sampled_from(["midpoint", "heun"]),
        "set_alpha_to_one": st.booleans(),
        "variance_type": st.sampled_from([None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"]),
        "interpolation_type": st.sampled_from(["linear", "log_linear"]),
        "use_karras_sigmas": st.booleans(),
        "steps_offset": st.integers(0, 1),
        "clip_sample": st.sampled_from([False, False, False, True]),
        "clip_sample_range": st.sampled_from([1.0, 30.0, 1e4]),
        "thresholding": st.sampled_from([False, False, False, True]),
        "sample_max_value": st.sampled_from([1.0, 50.0]),
        "dynamic_thresholding_ratio": st.sampled_from([0.5, 0.995, 1.0]),
    }
)
FLOWS = st.fixed_dictionaries(
    {
        "_class_name": st.just("FlowMatchEulerDiscreteScheduler"),
        "shift": st.floats(0.3, 12),
        "use_dynamic_shifting": st.booleans(),
        "time_shift_type": st.sampled_from(["exponential", "linear"]),
        "shift_terminal": st.sampled_from([None, 0.02, 0.1]),
        "use_karras_sigmas": st.booleans(),
        "stochastic_sampling": st.booleans(),
        "lower_order_final": st.booleans(),
        "euler_at_final": st.booleans(),
        "solver_type": st.sampled_from(["midpoint", "heun"]),
    }
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(SCHEDULES, st.sampled_from(TABLED), st.integers(1, 60), st.floats(0, 1))
def test_any_schedule_equals_diffusers_or_is_refused(config: Config, sampler: str, steps: int, eta: float) -> None:
    assert_equal_or_refused(config | {"beta_start": 0.00085, "beta_end": 0.012}, sampler, steps, eta, TimestepOptions())


@settings(max_examples=75, deadline=None)
@given(FLOWS, st.sampled_from(["euler", "dpmpp_2m"]), st.integers(1, 60), st.floats(0, 2), st.booleans())
def test_any_flow_schedule_equals_diffusers_or_is_refused(
    config: Config, sampler: str, steps: int, mu: float, has_own_sigmas: bool
) -> None:
    assert_equal_or_refused(config, sampler, steps, 0.0, TimestepOptions(mu, levels(steps) if has_own_sigmas else None))


def assert_equal_or_refused(
    config: Config, sampler: str, steps: int, eta: float, timestep_options: TimestepOptions
) -> None:
    """A plan equals diffusers. `NotTabled` means clipping; other errors mean that diffusers fails too."""
    try:
        table = plan(config, sampler, steps, eta, timestep_options)
    except NotTabled:
        settings_of_scheduler = build_scheduler(config, sampler).config
        assert settings_of_scheduler.get("thresholding") or settings_of_scheduler.get("clip_sample")
        return
    except ValueError:
        assert not is_finite_in_diffusers(config, sampler, steps, eta, timestep_options)
        return
    if sampler == "ddim" and not is_finite_in_diffusers(config, sampler, steps, eta, timestep_options):
        eta *= 1 - 1e-6  # see test_full_noise_at_zero_terminal_snr_never_divides_by_zero
    reference = oracle(config, sampler, steps, eta, timestep_options, double=True)
    draws = torch.float32 if sampler == "dpmpp_2m_sde" else None
    assert relative_difference(run_plan(table, double=True, draws=draws), reference) <= (SDE if draws else 1e-9)


def is_finite_in_diffusers(
    config: Config, sampler: str, steps: int, eta: float, timestep_options: TimestepOptions
) -> bool:
    try:
        return all(bool(x.isfinite().all()) for x in oracle(config, sampler, steps, eta, timestep_options, double=True))
    except (AssertionError, IndexError, NotImplementedError, ValueError):
        return False


@pytest.mark.parametrize("steps", [3, 7, 16, 50, 111])
def test_full_noise_at_zero_terminal_snr_never_divides_by_zero(steps: int) -> None:
    """Diffusers divides by zero if a rounding has the wrong sign, which depends on the processor."""
    table = plan(EMBEDDED, "ddim", steps, 1.0)
    assert abs(table.table).max() < 1e4
    divides_by_zero = not is_finite_in_diffusers(EMBEDDED, "ddim", steps, 1.0, TimestepOptions())
    reference = oracle(EMBEDDED, "ddim", steps, 1 - 1e-6 if divides_by_zero else 1.0, double=True)
    assert relative_difference(run_plan(table, double=True), reference) <= DOUBLE


def test_noise_levels_follow_the_forward_process() -> None:
    table = plan(EPSILON, "ddpm", 1000).table
    alpha = table[:, 8]
    sigma = table[:, 9]
    assert alpha**2 + sigma**2 == pytest.approx(1.0, abs=1e-6)
    assert alpha[0] < 0.07
    assert alpha[-1] > 0.999


def test_noise_levels_of_a_flow_lie_on_a_straight_line() -> None:
    for sampler in ("euler", "dpmpp_2m"):
        alpha, sigma = plan(SD3, sampler, 20).table[:, 8:].T
        assert alpha + sigma == pytest.approx(1.0, abs=1e-6)
        assert sigma[0] > 0.99
        assert (np.diff(sigma) < 0).all()


@pytest.mark.parametrize(
    ("config", "sampler"), [*((VELOCITY, name) for name in TABLED), (SD3, "euler"), (SANA, "dpmpp_2m")]
)
def test_a_plan_recovers_x0_from_an_exact_output(config: Config, sampler: str) -> None:
    """An output that is exact for an x0 and a noise gives that x0 back (LCM mixes in some of its input)."""
    x0 = torch.tensor([0.3, -1.2, 2.0]).double()
    noise = torch.tensor([0.5, 0.1, -0.7]).double()
    for row in plan(config, sampler, 20).table[1:]:
        coefficients = dict(zip(COLUMNS, row.tolist(), strict=True))
        x = coefficients["alpha"] * x0 + coefficients["sigma"] * noise
        scale = (coefficients["alpha"] ** 2 + coefficients["sigma"] ** 2) ** 0.5  # Euler's alpha is 1
        velocity = (
            noise - x0
            if config in (SD3, SANA)
            else (coefficients["alpha"] * noise - coefficients["sigma"] * x0) / scale
        )
        tolerance = 1e-2 if sampler == "lcm" else 1e-5
        assert (coefficients["P"] * x + coefficients["Q"] * velocity).tolist() == pytest.approx(
            x0.tolist(), abs=tolerance
        )


def test_only_a_multistep_sampler_keeps_history() -> None:
    samplers_with_history = {name for name in TABLED if plan(EMBEDDED, name, 20).has_history}
    assert samplers_with_history == {"dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde"}
    assert plan(SANA, "dpmpp_2m", 20).has_history
    assert not plan(SANA, "euler", 20).has_history


def test_draws_match_those_of_the_scheduler() -> None:
    assert plan(EMBEDDED, "ddim", 20, 0.0).draw_counts == (1,) * 21
    assert plan(EMBEDDED, "ddim", 20, 0.5).draw_counts == tuple(range(1, 22))
    assert plan(EMBEDDED, "ddpm", 1000).draw_counts[-1] == 1000  # no draw at timestep 0, one for the initial latents
    assert plan(EMBEDDED, "lcm", 8).draw_counts[-2:] == (8, 8)  # no draw at its last step
    for sampler in ("euler_ancestral", "dpmpp_2m_sde"):  # their last draw changes nothing, but counts
        table = plan(EMBEDDED, sampler, 20)
        assert table.draw_counts == tuple(range(1, 22))
        assert table.table[-1, COLUMNS.index("N")] == 0.0


def test_the_order_of_the_last_step_follows_the_configuration() -> None:
    """Each of these settings makes the last step of DPM++ 2M first order and changes no earlier step."""
    table = plan(EPSILON, "dpmpp_2m", 12).table
    base_config = EPSILON | {"final_sigmas_type": "sigma_min", "lower_order_final": False}
    changes = ({"final_sigmas_type": "zero"}, {"lower_order_final": True}, {"euler_at_final": True})
    table, *other_tables = (plan(base_config | change, "dpmpp_2m", 12).table for change in ({}, *changes))
    for other in other_tables:
        assert (other[:-1] == table[:-1]).all()
        assert other[-1, COLUMNS.index("M")] == 0.0 != table[-1, COLUMNS.index("M")]


def test_wrong_or_missing_timing_is_refused() -> None:
    with pytest.raises(ValueError, match="depends on the picture's size"):
        plan(FLUX, "euler", 4)
    with pytest.raises(ValueError, match="as many noise levels as steps"):
        plan(SD3, "euler", 4, timing=TimestepOptions(sigmas=(1.0, 0.5)))
    with pytest.raises(ValueError, match="makes its own noise levels"):
        plan(EPSILON, "ddpm", 2, timing=TimestepOptions(sigmas=(1.0, 0.5)))


def test_plans_are_cached_by_all_their_inputs_and_read_only() -> None:
    table = plan(EMBEDDED, "ddpm", 20)
    assert plan(dict(EMBEDDED), "ddpm", 20) is table
    tables = [
        plan(FLUX, "euler", 4, timing=TimestepOptions(mu, has_own_sigmas)).table
        for mu in (0.5, 1.0)
        for has_own_sigmas in (None, levels(4))
    ]
    assert len({each.tobytes() for each in tables}) == 4
    with pytest.raises(ValueError, match="read-only"):
        table.table[0, 0] = 1.0
