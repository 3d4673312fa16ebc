"""A worker's watchdog: the deadline of each phase, by a clock that the tests set."""

from __future__ import annotations

import pytest

from engine.worker.worker_life import Phase, Watchdog
from shared.clock import Clock


def run_steps(watchdog: Watchdog, clock: Clock, seconds: float, count: int) -> None:
    for _ in range(count):
        with watchdog.time_phase("the engine", "step"):
            clock.now += seconds


@pytest.mark.parametrize(("phase", "deadline"), [("load", 900), ("encode", 60), ("decode", 310)])
def test_every_phase_has_its_deadline(phase: Phase, deadline: float) -> None:
    clock = Clock()
    watchdog = Watchdog(clock=clock)
    with watchdog.time_phase("somebody", phase):
        clock.now = deadline - 1
        assert watchdog.find_missed_deadline() is None
        clock.now = deadline + 1
        assert (
            watchdog.find_missed_deadline()
            == f"somebody has been in one {phase} for {deadline + 1} s (at most {deadline} s)."
        )
    assert watchdog.find_missed_deadline() is None


def test_the_first_step_may_take_as_long_as_loading() -> None:
    clock = Clock()
    watchdog = Watchdog(clock=clock)
    with watchdog.time_phase("the engine", "step"):
        clock.now = 899
        assert watchdog.find_missed_deadline() is None
        clock.now = 901
        assert watchdog.find_missed_deadline() is not None


@pytest.mark.parametrize(("median_step", "deadline"), [(0.01, 10), (0.4, 10), (2.0, 40)])
def test_a_step_may_take_ten_seconds_or_twenty_times_the_median(median_step: float, deadline: float) -> None:
    clock = Clock()
    watchdog = Watchdog(clock=clock)
    run_steps(watchdog, clock, median_step, 50)
    run_steps(watchdog, clock, 100.0, 3)  # three slow steps do not move the median
    started_at = clock.now
    with watchdog.time_phase("the engine", "step"):
        clock.now = started_at + deadline - 0.5
        assert watchdog.find_missed_deadline() is None
        clock.now = started_at + deadline + 0.5
        assert watchdog.find_missed_deadline() is not None


def test_a_large_models_step_after_many_small_steps_is_not_late() -> None:
    clock = Clock()
    watchdog = Watchdog(slowest_step=3.0, clock=clock)
    run_steps(watchdog, clock, 0.01, 100)
    assert watchdog.get_deadline("step") == pytest.approx(60.0)


def test_a_decode_may_wait_for_a_slow_step_to_end() -> None:
    clock = Clock()
    watchdog = Watchdog(slowest_step=30.0, clock=clock)
    with watchdog.time_phase("the lane", "decode"):
        clock.now = 899.0
        assert watchdog.find_missed_deadline() is None
        clock.now = 901.0
        assert watchdog.find_missed_deadline() is not None


def test_each_thread_has_its_own_phase() -> None:
    clock = Clock()
    watchdog = Watchdog(clock=clock)
    watchdog.start_phase("the lane", "decode")
    run_steps(watchdog, clock, 1.0, 319)
    assert watchdog.find_missed_deadline() is None
    run_steps(watchdog, clock, 1.0, 2)
    assert "the lane" in (watchdog.find_missed_deadline() or "")
    watchdog.start_phase("the lane", "decode")  # one decode ends and the next begins
    assert watchdog.find_missed_deadline() is None
    watchdog.end_phase("the lane")
    clock.now += 1000
    assert watchdog.find_missed_deadline() is None
