"""Model load times are learnt from what the workers report."""

from __future__ import annotations

import pytest

from bot.queue.loads import SILENT, Loads


def test_the_load_speed_is_learnt_and_the_remaining_time_shrinks():
    loads = Loads()
    assert (loads.seconds("m", 0.0), loads.done("m", 0.0)) == (0.0, None)
    loads.note("j", "m", 0.0, 100.0)
    loads.note("j", "m", 0.5, 110.0)
    assert loads.done("m", 110.0) == 0.5
    assert loads.seconds("m", 110.0) == pytest.approx(10.0)
    assert loads.seconds("other", 110.0) == 0.0


def test_a_silent_load_counts_as_done_and_the_next_one_takes_as_long():
    loads = Loads()
    loads.note("j", "m", 0.2, 100.0)
    loads.note("j", "m", 0.6, 102.0)
    later = 102.1 + SILENT
    assert loads.done("m", later) is None
    assert loads.seconds("m", later) == pytest.approx(5.0)


def test_another_load_starts_anew():
    loads = Loads()
    for now, done in ((0.0, 0.0), (4.0, 1.0), (30.0, 0.1)):
        loads.note("j", "m", done, now)
    assert loads.seconds("m", 30.0) == pytest.approx(4.0 * 0.9)
    loads.note("k", "m", 0.5, 31.0)
    assert loads.seconds("m", 31.0) == pytest.approx(4.0 * 0.5)
