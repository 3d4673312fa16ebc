"""The observer derives a job's progress from previews. Pure."""

from __future__ import annotations

from tools.chaos.observer import ClaimRecord, Loss, Observer


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


def make_observer(claims: list[ClaimRecord]) -> Observer:
    observer = Observer(None, list)  # pyright: ignore[reportArgumentType]
    observer.jobs["job"] = {claim.epoch: claim for claim in claims}
    return observer


def test_a_job_that_keeps_its_worker_through_a_cut_waits_until_its_next_step_not_until_a_later_loss() -> None:
    claim = ClaimRecord(1, "w", 0, 100.0)
    later_claim = ClaimRecord(2, "v", 9, 332.0)
    claim.steps[0] += [(101.0, 3), (109.0, 4), (320.0, 90)]
    observer = make_observer([claim, later_claim])
    observer.losses = [Loss(102.0, "w", cause, (("job", 1),)) for cause in ("cut-worker", "kill")]
    cut, kill = observer.list_setbacks()
    assert (cut.resume_seconds, cut.is_isolated) == (7.0, False)
    assert kill.resume_seconds == 230.0
