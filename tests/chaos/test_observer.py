"""The observer derives a job's progress from previews. Pure."""

from __future__ import annotations

from chaos.observer import ClaimRecord


def test_a_step_after_the_last_preview_is_reached_no_sooner_than_that_preview() -> None:
    claim = ClaimRecord(epoch=1, worker="w", step=0, started_at=100.0)
    assert claim.find_reached_at(0) == 100.0
    assert claim.find_reached_at(5) == 100.0  # no preview yet
    claim.steps[0] += [(101.0, 3), (104.0, 9)]
    claim.steps[1] += [(102.0, 4)]
    assert (
        claim.find_reached_at(3),
        claim.find_reached_at(4),
        claim.find_reached_at(9),
        claim.find_reached_at(12),
    ) == (102.0, 104.0, 104.0, 104.0)
