"""The catalog learns model load times from workers' reports."""

from __future__ import annotations

import pytest

from bot.jobs.active_jobs import SILENT_SECONDS, ModelLoadTimes


def test_the_load_speed_is_learnt_and_the_remaining_time_shrinks():
    loads = ModelLoadTimes()
    assert (loads.estimate_seconds("m", 0.0), loads.get_progress("m", 0.0)) == (0.0, None)
    loads.record_progress("j", "m", 0.0, 100.0)
    loads.record_progress("j", "m", 0.5, 110.0)
    assert loads.get_progress("m", 110.0) == 0.5
    assert loads.estimate_seconds("m", 110.0) == pytest.approx(10.0)
    assert loads.estimate_seconds("other", 110.0) == 0.0


def test_a_silent_load_counts_as_done_and_the_next_one_takes_as_long():
    loads = ModelLoadTimes()
    loads.record_progress("j", "m", 0.2, 100.0)
    loads.record_progress("j", "m", 0.6, 102.0)
    silent_until = 102.1 + SILENT_SECONDS
    assert loads.get_progress("m", silent_until) is None
    assert loads.estimate_seconds("m", silent_until) == pytest.approx(5.0)


def test_another_load_starts_anew():
    loads = ModelLoadTimes()
    for now, progress in ((0.0, 0.0), (4.0, 1.0), (30.0, 0.1)):
        loads.record_progress("j", "m", progress, now)
    assert loads.estimate_seconds("m", 30.0) == pytest.approx(4.0 * 0.9)
    loads.record_progress("k", "m", 0.5, 31.0)
    assert loads.estimate_seconds("m", 31.0) == pytest.approx(4.0 * 0.5)
