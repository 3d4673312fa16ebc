"""The edit policy under a simulated clock keeps its limits, for any edits and any outcome of requests."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.discord.delivery.edit_policy import Edit, EditKind, EditPolicy, RateBudget


def edit(job: str, kind: EditKind, content: int, now: float = 0.0, bucket: str = "c") -> Edit[int]:
    return Edit(job, bucket, kind, content, now)


@dataclass
class World:
    """Discord as the policy sees it, under a simulated clock. Requests take a while and sometimes fail."""

    edits: EditPolicy[int]
    now: float = 0.0
    in_flight: list[tuple[float, bool, Edit[int]]] = field(default_factory=list)
    spans: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    newest_edits: dict[str, Edit[int]] = field(default_factory=dict)
    started_edits: list[tuple[float, Edit[int]]] = field(default_factory=list)

    def offer(self, one: Edit[int], due: float = math.inf) -> None:
        if self.edits.offer(one, due):
            self.newest_edits[one.job] = one

    def send(self, duration: float, succeeds: bool) -> Edit[int] | None:
        one = self.edits.take_next(self.now)
        if one is None:
            next_wake = self.edits.next_wake(self.now)
            self.edits._dirty_buckets.update(self.edits._buckets)
            assert next_wake <= self.edits.next_wake(self.now), "something could be sent earlier than it says"
            return None
        self._check(one)
        self.edits.mark_rendered(one)
        self.in_flight.append((self.now + duration, succeeds, one))
        self.spans[one.bucket].append((self.now, self.now + duration))
        self.started_edits.append((self.now, one))
        return one

    def _check(self, one: Edit[int]) -> None:
        assert one.bucket not in {each.bucket for _, _, each in self.in_flight}, "two in flight in one bucket"
        assert one.content == self.newest_edits[one.job].content, "an old frame was sent"
        if one.kind != "final":
            final_jobs = [
                job for job, each in self.newest_edits.items() if each.kind == "final" and each.bucket == one.bucket
            ]
            waiting_finals = [job for job in final_jobs if job in self.edits._waiting_edits]
            delayed_finals = [job for job in waiting_finals if self.edits._not_before.get(job, -math.inf) > self.now]
            assert waiting_finals == delayed_finals, "a preview went before a final"

    def end_one(self) -> None:
        self.in_flight.sort(key=lambda each: each[0])
        ends_at, succeeds, one = self.in_flight.pop(0)
        self.now = max(self.now, ends_at)
        if succeeds:
            self.edits.mark_sent(one, self.now)
        else:
            self.edits.mark_failed(one, self.now, delay=1.0)


steps = st.lists(
    st.tuples(
        st.sampled_from(["offer", "offer", "final", "take", "take", "end", "sleep"]),
        st.integers(0, 11),  # job
        st.floats(0.01, 0.6, allow_nan=False) | st.floats(0.6, 3.0),  # how long a request or a sleep takes
        st.booleans(),
    ),
    max_size=200,
)


@settings(max_examples=100, deadline=None)
@given(steps)
def test_no_script_exceeds_the_edit_budget_of_a_bucket(script: list[tuple[str, int, float, bool]]) -> None:
    world = World(EditPolicy(RateBudget(preview_interval=0.1)))
    count = itertools.count()
    for action, number, duration, succeeds in script:
        job = f"job{number}"
        bucket = f"c{number % 3}"
        if action == "offer":
            world.offer(edit(job, "preview", next(count), world.now, bucket), world.now + 10 * duration)
        elif action == "final":
            world.offer(edit(job, "final", next(count), world.now, bucket))
        elif action == "take":
            world.send(duration, succeeds)
        elif action == "end" and world.in_flight:
            world.end_one()
        else:
            world.now += duration
    budget = world.edits.budget
    for spans in world.spans.values():
        for first_span, later_span in zip(spans, spans[budget.limit :], strict=False):
            # this holds even if every request arrives at the worst moment of its span
            assert later_span[0] >= first_span[1] + budget.window - 1e-9, "more than the budget in one window"


@settings(max_examples=100, deadline=None)
@given(steps, st.integers(1, 7))
def test_a_learnt_limit_holds_from_then_on(script: list[tuple[str, int, float, bool]], limit: int) -> None:
    world = World(EditPolicy())
    count = itertools.count()
    for bucket in ("c0", "c1"):
        world.edits.apply_limits(bucket, limit, limit, 0.0)
    for action, number, duration, succeeds in script:
        job = f"job{number}"
        bucket = f"c{number % 2}"
        if action in ("offer", "final"):
            kind: EditKind = "final" if action == "final" else "preview"
            world.offer(edit(job, kind, next(count), world.now, bucket))
        elif action == "take":
            if one := world.send(duration, succeeds):
                world.end_one()
                left = max(0, limit - sum(end > world.now - 5 for _, end in world.spans[one.bucket]))
                world.edits.apply_limits(one.bucket, limit, left, world.now + 5.0)
        else:
            world.now += duration
    for spans in world.spans.values():
        for first_span, later_span in zip(spans, spans[limit:], strict=False):
            assert later_span[0] >= first_span[1] + world.edits.budget.window - 1e-9, (
                "more than Discord allows in one window"
            )


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 5),
    st.lists(st.tuples(st.floats(0.02, 1.5), st.booleans()), min_size=1, max_size=20),
)
def test_every_final_arrives_once_and_no_bucket_starves(
    jobs: int, buckets: int, outcomes: list[tuple[float, bool]]
) -> None:
    world = World(EditPolicy())
    endless_outcomes = itertools.chain(outcomes, itertools.repeat((0.1, True)))
    for number in range(jobs):
        world.offer(edit(f"job{number}", "preview", 0, 0.0, f"c{number % buckets}"))
        world.offer(edit(f"job{number}", "final", 1, 0.0, f"c{number % buckets}"))
    for _ in range(5000):
        duration, succeeds = next(endless_outcomes)
        if world.send(duration, succeeds):
            continue
        if world.in_flight:
            world.end_one()
        elif math.isfinite(wake_at := world.edits.next_wake(world.now)):
            assert wake_at > world.now
            world.now = wake_at
        else:
            break
    finished_finals = [one.job for _, one in world.started_edits if one.kind == "final"]
    assert set(finished_finals) == {f"job{number}" for number in range(jobs)}
    assert math.isinf(world.edits.next_wake(world.now)), "something still waits"


def simulate(world: World, jobs: int, seconds: float, buckets: int, final_job: str | None = None) -> None:
    """Offer frames of every job ten times a second. Each request takes 0.15 s. `final_job` gets a final a second."""
    sequence = itertools.count()
    for tick in range(round(seconds * 20)):
        world.now = tick / 20
        while world.in_flight and min(ends_at for ends_at, _, _ in world.in_flight) <= world.now:
            world.end_one()
        if tick % 2 == 0:
            for number in range(jobs):
                world.offer(edit(f"job{number}", "preview", next(sequence), world.now, f"c{number % buckets}"))
        if final_job and tick % 20 == 0:
            world.offer(edit(f"end{tick}", "final", next(sequence), world.now, final_job))
        while world.send(0.15, True):
            pass


def test_a_busy_channel_does_not_starve_the_others_nor_its_own_jobs() -> None:
    world = World(EditPolicy())
    simulate(world, jobs=9, seconds=40, buckets=3)
    edits_by_job = defaultdict(list)
    for ends_at, one in world.started_edits:
        edits_by_job[one.job].append(ends_at)
    assert len(edits_by_job) == 9
    counts = [len(times) for times in edits_by_job.values()]
    assert max(counts) - min(counts) <= 1, "three jobs of one channel share it evenly"
    assert max(b - a for times in edits_by_job.values() for a, b in itertools.pairwise(times)) < 6


def test_finals_of_one_channel_leave_another_channels_previews_alone() -> None:
    lone_world = World(EditPolicy())
    shared_world = World(EditPolicy())
    simulate(lone_world, jobs=1, seconds=20, buckets=1)
    simulate(shared_world, jobs=1, seconds=20, buckets=1, final_job="other")
    own_edits = [one for _, one in shared_world.started_edits if one.bucket == "c0"]
    assert len(own_edits) == len(lone_world.started_edits) >= 14


def test_ten_seconds_show_at_least_six_previews_and_the_first_at_once() -> None:
    world = World(EditPolicy())
    simulate(world, jobs=3, seconds=10, buckets=3)
    for number in range(3):
        times = [ends_at for ends_at, one in world.started_edits if one.job == f"job{number}"]
        assert len(times) >= 6
        assert times[0] == 0.0


def test_intervals_widen_with_the_jobs_in_a_bucket() -> None:
    edits: EditPolicy[int] = EditPolicy()
    edits.offer(edit("a", "preview", 0))
    one = edits.preview_interval("c")
    for number in range(3):
        edits.offer(edit(f"b{number}", "preview", 0))
    assert edits.preview_interval("c") > one
    for number in range(3):
        edits.offer(edit(f"b{number}", "final", 0))
    assert edits.preview_interval("c") == one == edits.budget.preview_interval


@pytest.mark.slow
def test_many_jobs_share_the_global_preview_limit_evenly() -> None:
    world = World(EditPolicy())
    simulate(world, jobs=100, seconds=20, buckets=100)
    times = [ends_at for ends_at, _ in world.started_edits]
    max_previews = world.edits.budget.previews_per_second
    assert all(
        later_span - first_span >= 1.0 for first_span, later_span in zip(times, times[max_previews:], strict=False)
    )
    spans = sorted(span for each in world.spans.values() for span in each)
    end_times = sorted(end for _, end in spans)
    assert all(start >= end + 1.0 for end, (start, _) in zip(end_times, spans[max_previews:], strict=False)), (
        "also where they bunch"
    )
    times_by_job = defaultdict(list)
    for ends_at, one in world.started_edits:
        times_by_job[one.job].append(ends_at)
    assert {len(each) for each in times_by_job.values()} <= {3, 4, 5}, "every job has about as many as any other"
    gaps = [
        later_span - first_span for each in times_by_job.values() for first_span, later_span in itertools.pairwise(each)
    ]
    assert min(gaps) > 3.3, "and they lie evenly: a round takes five seconds"


def test_a_new_job_is_shown_soon_and_no_job_waits_for_ever() -> None:
    edits: EditPolicy[int] = EditPolicy(RateBudget(previews_per_second=1, first_preview_lead=5.0))
    for number in range(4):
        edits.offer(edit(f"old{number}", "preview", 0, 0.0, f"c{number}"))
    for now in range(4):
        first = edits.take_next(float(now))
        assert first
        edits.mark_sent(first, float(now))
        edits.offer(edit(first.job, "preview", 1, float(now), first.bucket))
    served_jobs = set()
    for now in range(4, 40):
        edits.offer(edit(f"new{now}", "preview", 0, float(now), f"new{now}"))
        one = edits.take_next(float(now))
        assert one
        served_jobs.add(one.job)
        edits.mark_sent(one, float(now))
    assert "new4" in served_jobs
    assert {f"old{number}" for number in range(4)} <= served_jobs, "old jobs get their turn among endless new ones"


def test_while_a_preview_is_rendered_only_finals_start() -> None:
    edits: EditPolicy[int] = EditPolicy()
    for name in ("a", "b"):
        edits.offer(edit(name, "preview", 0, bucket=name))
    first = edits.take_next(0.0)
    assert first
    assert edits.take_next(0.1) is None
    assert math.isinf(edits.next_wake(0.1)), "no wake-up: the rendered preview reports itself"
    edits.offer(edit("c", "final", 1, 0.2, "c"))
    final_edit = edits.take_next(0.2)
    assert final_edit
    assert final_edit.job == "c"
    edits.mark_rendered(first)
    second = edits.take_next(0.3)
    assert second
    assert {first.job, second.job} == {"a", "b"}
    edits.mark_failed(second, 0.4, delay=1.0)
    edits.offer(edit("d", "preview", 0, 0.4, "d"))
    assert edits.take_next(0.4), "a failed preview is no longer being rendered"


def test_a_late_frame_never_covers_a_final() -> None:
    edits: EditPolicy[int] = EditPolicy()
    edits.offer(edit("a", "preview", 0))
    in_flight = edits.take_next(0.0)
    assert in_flight
    edits.offer(edit("a", "final", 1))
    assert edits.take_next(0.1) is None, "one at a time"
    edits.mark_failed(in_flight, 0.2)
    final_edit = edits.take_next(0.2)
    assert final_edit
    assert (final_edit.kind, final_edit.content) == ("final", 1)
    edits.mark_sent(final_edit, 0.3)
    assert not edits.offer(edit("a", "preview", 2))
    assert edits.take_next(60.0) is None


def test_no_preview_starts_just_before_a_final_is_due() -> None:
    edits: EditPolicy[int] = EditPolicy(RateBudget(final_lead=0.5))
    edits.offer(edit("a", "preview", 0), due=10.0)
    assert edits.take_next(9.7) is None
    assert edits.next_wake(9.7) == 10.0
    assert edits.take_next(10.0), "the final did not come: previews go on"


def test_a_burst_of_finals_stays_within_the_budget() -> None:
    edits: EditPolicy[int] = EditPolicy()
    for number in range(8):
        edits.offer(edit(f"a{number}", "final", number, number / 100))
    times = []
    now = 1.0
    while one := edits.take_next(now) or (
        edits.take_next(now := edits.next_wake(now)) if math.isfinite(edits.next_wake(now)) else None
    ):
        times.append(now)
        now += 0.2
        edits.mark_sent(one, now)
    assert times[:5] == pytest.approx([1.0, 1.2, 1.4, 1.6, 1.8])
    assert times[5:] == pytest.approx([6.2, 6.4, 6.6]), "five seconds after the first one ended"


def test_a_preview_leaves_room_for_a_final() -> None:
    edits: EditPolicy[int] = EditPolicy()
    for number in range(4):
        edits.offer(edit(f"a{number}", "final", number))
        one = edits.take_next(1.0)
        assert one
        edits.mark_sent(one, 1.0)
    edits.offer(edit("b", "preview", 4))
    assert edits.take_next(1.5) is None
    edits.offer(edit("c", "final", 5))
    assert edits.take_next(1.5)


def test_a_failed_edit_gives_way_to_a_newer_one() -> None:
    edits: EditPolicy[int] = EditPolicy()
    edits.offer(edit("a", "preview", 0))
    old = edits.take_next(0.0)
    assert old
    edits.offer(edit("a", "preview", 1, 0.5))
    edits.mark_failed(old, 1.0, delay=2.0)
    assert edits.take_next(2.9) is None
    newer_edit = edits.take_next(3.0)
    assert newer_edit
    assert newer_edit.content == 1
    edits.offer(edit("a", "final", 2, 3.1))
    final_edit = edits.take_next(3.1)
    assert final_edit is None
    edits.mark_failed(newer_edit, 3.2)
    last = edits.take_next(3.2)
    assert last
    edits.mark_failed(last, 3.3, delay=1.0)
    repeated_edit = edits.take_next(4.3)
    assert repeated_edit
    assert repeated_edit.content == last.content == 2
    edits.mark_sent(repeated_edit, 4.4)
    assert math.isinf(edits.next_wake(4.4)), "the old preview does not come back"


@pytest.mark.parametrize("is_dropped", [False, True])
@pytest.mark.parametrize("failed_first", [False, True])
def test_the_pause_of_a_failed_preview_does_not_delay_its_final(failed_first: bool, is_dropped: bool) -> None:
    edits: EditPolicy[int] = EditPolicy()
    edits.offer(edit("a", "preview", 0))
    preview = edits.take_next(0.0)
    assert preview
    if failed_first:
        edits.mark_failed(preview, 0.1, delay=30.0)
    if is_dropped:
        edits.discard("a")
    edits.offer(edit("a", "final", 1, 0.2))
    if not failed_first:
        edits.mark_failed(preview, 0.3, delay=30.0)
    final_edit = edits.take_next(0.4)
    assert final_edit
    assert final_edit.final
    edits.mark_failed(final_edit, 0.5, delay=2.0)
    assert edits.take_next(1.0) is None
    edits.offer(edit("a", "final", 1, 1.0))
    assert edits.take_next(1.0) is None, "its own pause holds"
    assert edits.take_next(2.6)
    edits.mark_sent(final_edit, 2.7)
    assert edits._not_before == {}


def test_a_preview_in_flight_at_the_hand_over_never_follows_the_final() -> None:
    edits: EditPolicy[int] = EditPolicy()
    edits.offer(edit("a", "preview", 0, bucket="token"))
    preview = edits.take_next(0.0)
    assert preview
    edits.offer(edit("a", "final", 1, 0.5, bucket="channel"))
    final_edit = edits.take_next(0.5)
    assert final_edit
    edits.mark_sent(final_edit, 0.6)
    edits.mark_failed(preview, 0.7)
    assert edits.take_next(9.0) is None


def test_a_queue_place_updates_at_most_every_half_minute() -> None:
    edits: EditPolicy[int] = EditPolicy()
    edits.offer(edit("a", "place", 0))
    first = edits.take_next(0.0)
    assert first
    edits.mark_sent(first, 0.1)
    edits.offer(edit("a", "place", 1, 1.0))
    assert edits.take_next(29.0) is None
    edits.offer(edit("a", "preview", 2, 2.0))
    assert edits.take_next(29.0), "but the first frame is shown at once"


@pytest.mark.parametrize("kind", ["preview", "final"])
def test_a_limit_from_discord_holds_until_it_resets(kind: EditKind) -> None:
    edits: EditPolicy[int] = EditPolicy()
    edits.apply_limits("c", limit=2, remaining=0, reset_at=7.0)
    edits.offer(edit("a", kind, 0))
    assert edits.take_next(6.9) is None
    assert edits.next_wake(6.9) == 7.0
    assert edits.take_next(7.0)


def test_buckets_of_past_interactions_are_forgotten() -> None:
    edits: EditPolicy[int] = EditPolicy()
    for number in range(800):
        now = float(number)
        edits.offer(edit(f"a{number}", "final", 0, now, f"token{number}"))
        one = edits.take_next(now)
        assert one
        edits.mark_sent(one, now)
    assert len(edits._buckets) < 300
    assert not edits._last_edit_times
