"""Lost workers count against a job only where nothing else breaks at that time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bot.policy.worker_losses import MAX_PAUSE, QUIET_SECONDS, LossLog, WorkerLoss, is_on_probation, retry_pause

START = 1_000_000.0
FAR = 2 * QUIET_SECONDS


def make_loss(job: str, worker: str, found_at: float, seconds: float = 12.0) -> WorkerLoss:
    return WorkerLoss(job, worker, found_at - seconds, found_at)


def make_log(*losses: WorkerLoss, outages: tuple[float, ...] = ()) -> LossLog:
    log = LossLog()
    for loss in losses:
        log.record_loss(loss)
    for outage in outages:
        log.record_outage(outage)
    return log


def list_lone_losses(job: str, count: int, gap: float = FAR) -> list[WorkerLoss]:
    return [make_loss(job, f"w{number % 2}", START + gap * number) for number in range(count)]


def test_three_lost_workers_in_a_quiet_time_point_at_the_job() -> None:
    log = make_log(*list_lone_losses("bad", 3, gap=12.0))
    assert not log.points_at("bad", 2)
    assert log.points_at("bad", 3)
    assert log.points_at("bad", 9)
    assert not log.points_at("good", 9)


def test_two_losses_are_too_few() -> None:
    assert not make_log(*list_lone_losses("bad", 2)).points_at("bad", 2)


def test_losses_before_the_last_progress_do_not_count() -> None:
    assert not make_log(*list_lone_losses("job", 4)).points_at("job", 2)


@given(count=st.integers(3, 30), others=st.lists(st.sampled_from(["w0", "w1", "w2"]), min_size=1), data=st.data())
def test_a_job_whose_neighbours_lose_other_workers_at_each_of_its_losses_is_never_poison(
    count: int, others: list[str], data: st.DataObject
) -> None:
    losses = list_lone_losses("job", count)
    log = make_log(*losses)
    for loss in losses:
        offset = data.draw(st.floats(-QUIET_SECONDS, QUIET_SECONDS))
        log.record_loss(WorkerLoss("other", f"far-{others[0]}", loss.found_at + offset - 9.0, loss.found_at + offset))
    assert not log.points_at("job", count)


@given(count=st.integers(3, 30), offset=st.floats(-QUIET_SECONDS, QUIET_SECONDS))
def test_an_outage_at_each_loss_excuses_the_job(count: int, offset: float) -> None:
    losses = list_lone_losses("job", count)
    assert not make_log(*losses, outages=tuple(loss.found_at + offset for loss in losses)).points_at("job", count)


@given(noise=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 400.0)), max_size=20))
def test_what_breaks_far_away_excuses_nobody(noise: list[tuple[str, float]]) -> None:
    far = [make_loss(job, "far", START - FAR - 400.0 + at) for job, at in noise]
    assert make_log(*far, *list_lone_losses("bad", 3)).points_at("bad", 3)


@given(neighbours=st.integers(1, 8), late=st.floats(0.0, 10.0))
def test_shared_losses_count_half_and_end_a_real_poison_job_all_the_same(neighbours: int, late: float) -> None:
    log = LossLog()
    for number, loss in enumerate(list_lone_losses("bad", 6, gap=30.0), start=1):
        log.record_loss(loss)
        for other in range(neighbours):  # found a little later: they waited for a free worker
            found_at = loss.found_at + late
            log.record_loss(WorkerLoss(f"{number}-{other}", loss.worker, loss.claimed_at - 5.0, found_at))
        assert log.points_at("bad", number) is (number == 6)
        assert not log.points_at(f"{number}-0", 3)


@given(st.data())
def test_a_job_alone_in_a_quiet_house_is_poison_after_exactly_three(data: st.DataObject) -> None:
    gaps = data.draw(st.lists(st.floats(10.0, 4000.0), min_size=3, max_size=3))
    log = LossLog()
    now = START
    for number, gap in enumerate(gaps, start=1):
        now += gap
        log.record_loss(WorkerLoss("bad", f"w{number % 2}", now - 10.0, now))
        assert log.points_at("bad", number) is (number == 3)


@given(job=st.text(max_size=26), attempts=st.integers(0, 10_000))
def test_pauses_grow_to_their_limit_and_the_first_two_retries_have_none(job: str, attempts: int) -> None:
    pause = retry_pause(job, attempts)
    assert pause == retry_pause(job, attempts) <= MAX_PAUSE
    assert (pause == 0.0) is (attempts <= 2)
    assert retry_pause(job, attempts + 2) > pause or pause > MAX_PAUSE / 3 or attempts == 0
    assert is_on_probation(attempts) is (attempts >= 2)


def test_neighbours_do_not_return_together() -> None:
    for attempts in (3, 12):
        assert len({retry_pause(f"job{number}", attempts) for number in range(50)}) == 50
