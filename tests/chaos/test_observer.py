"""What previews reveal about a job's progress. Pure."""

from __future__ import annotations

from chaos.observer import Claimed


def test_a_step_after_the_last_preview_is_reached_no_sooner_than_that_preview() -> None:
    one = Claimed(epoch=1, worker="w", step=0, began=100.0)
    assert one.reached(0) == 100.0
    assert one.reached(5) == 100.0  # no preview yet
    one.steps[0] += [(101.0, 3), (104.0, 9)]
    one.steps[1] += [(102.0, 4)]
    assert (one.reached(3), one.reached(4), one.reached(9), one.reached(12)) == (102.0, 104.0, 104.0, 104.0)
