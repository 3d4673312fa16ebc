"""Fair batches, as properties: nobody starves, no row is wasted, weights hold, groups do not switch too often."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from itertools import groupby, pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batching.scheduler import Scheduler
from engine.contract import BillingKey


@dataclass(eq=False)
class Image:
    """An image without a last step; `k` counts its steps."""

    job: str
    billing_key: BillingKey
    rows: int = 2
    key: Hashable = "one model"
    row_ms: float = 1.0
    k: int = 0
    forward_times: Mapping[int, float] = field(default_factory=dict)


def make_share(user: str, guild: str = "g", tier: str = "t", weight: float = 1.0) -> BillingKey:
    return BillingKey(tier=tier, guild=guild, user=user, weight=weight)


def run(scheduler: Scheduler[Image], steps: int, limit: int) -> list[list[Image]]:
    batches = []
    for _ in range(steps):
        batch = scheduler.next_batch(limit)
        for image in batch:
            image.k += 1  # the engine also advances them before the charge
        scheduler.charge(batch)
        batches.append(batch)
    return batches


def count_rows(batches: list[list[Image]], level: str = "user") -> Counter[str]:
    rows: Counter[str] = Counter()
    for batch in batches:
        for image in batch:
            rows[getattr(image.billing_key, level)] += image.rows
    return rows


def build_scheduler(*images: Image) -> Scheduler[Image]:
    scheduler: Scheduler[Image] = Scheduler()
    for image in images:
        scheduler.add(image)
    return scheduler


def build_image(number: int, user: str, guild: str, tier: str) -> Image:
    """An image of one of its user's ten jobs; the job decides rows and key."""
    return Image(f"{tier}{guild}{user}{number}", make_share(user, guild, tier), 1 + number % 5, f"model {number % 2}")


image_lists = st.lists(
    st.builds(build_image, st.integers(0, 9), st.sampled_from("abc"), st.sampled_from("xy"), st.sampled_from("st")),
    min_size=1,
    max_size=20,
)


@given(image_lists, st.integers(4, 20))
@settings(deadline=None, max_examples=25)
def test_no_image_starves(images: list[Image], limit: int) -> None:
    scheduler = build_scheduler(*images)
    for _ in range(100):
        run(scheduler, len(images), limit)
        if all(image.k for image in images):
            return
    raise AssertionError([image for image in images if not image.k])


@given(image_lists, st.integers(5, 20))
@settings(deadline=None, max_examples=25)
def test_a_batch_leaves_no_row_that_a_waiting_image_could_use(images: list[Image], limit: int) -> None:
    scheduler = build_scheduler(*images)
    for batch in run(scheduler, 30, limit):
        rows = sum(image.rows for image in batch)
        assert 0 < rows <= limit
        assert len({image.key for image in batch}) == 1
        assert len(set(map(id, batch))) == len(batch)
        waiting_images = [image for image in images if image.key == batch[0].key and image not in batch]
        assert all(rows + image.rows > limit for image in waiting_images)


@given(image_lists, st.integers(4, 20))
@settings(deadline=None, max_examples=25)
def test_choosing_a_batch_changes_nothing_until_the_charge(images: list[Image], limit: int) -> None:
    scheduler = build_scheduler(*images)
    run(scheduler, 7, limit)
    assert scheduler.next_batch(limit) == scheduler.next_batch(limit)


@given(image_lists, st.data())
@settings(deadline=None, max_examples=25)
def test_removing_all_images_leaves_no_state(images: list[Image], data: st.DataObject) -> None:
    scheduler = build_scheduler(*images)
    for image in data.draw(st.permutations(images)):
        run(scheduler, 2, 8)
        scheduler.remove(image)
    assert len(scheduler) == scheduler.active_rows == 0
    assert scheduler.next_batch(8) == []
    assert run(build_scheduler(*images), 1, 8)[0]


def test_a_user_with_one_job_gets_half_beside_a_user_with_twenty() -> None:
    hog_images = [Image(f"hog{job}", make_share("hog")) for job in range(20)]
    lone_images = [Image("lone", make_share("lone")) for _ in range(4)]
    rows = count_rows(run(build_scheduler(*hog_images, *lone_images), 200, 8))
    assert rows["lone"] == pytest.approx(rows["hog"], rel=0.02)


def test_guilds_of_any_size_get_equal_shares() -> None:
    small = [Image("s", make_share("only", "small")) for _ in range(8)]
    large = [Image(f"l{user}", make_share(f"user{user}", "large")) for user in range(20)]
    rows = count_rows(run(build_scheduler(*small, *large), 300, 8), "guild")
    assert rows["small"] == pytest.approx(rows["large"], rel=0.02)


def test_a_tier_of_weight_three_gets_three_quarters() -> None:
    standard_images = [Image("p", make_share("p", tier="standard")) for _ in range(8)]
    patron_images = [Image("q", make_share("q", tier="patron", weight=3.0)) for _ in range(8)]
    rows = count_rows(run(build_scheduler(*standard_images, *patron_images), 400, 8), "tier")
    assert rows["patron"] / rows["standard"] == pytest.approx(3.0, rel=0.05)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.integers(6, 16))
@settings(deadline=None, max_examples=25)
def test_busy_users_stay_within_one_batch_of_each_other(jobs: list[int], limit: int) -> None:
    images = [
        Image(f"{user}/{job}", make_share(str(user))) for user, count in enumerate(jobs) for job in range(count + limit)
    ]
    rows = count_rows(run(build_scheduler(*images), 40, limit))
    assert max(rows.values()) - min(rows.values()) <= limit


def test_a_newcomer_joins_the_next_batch_with_an_equal_share() -> None:
    scheduler = build_scheduler(*(Image(f"old{job}", make_share("old")) for job in range(10)))
    run(scheduler, 200, 8)
    scheduler.add(new_image := Image("new", make_share("new")))
    assert new_image in scheduler.next_batch(8)
    new_images = [new_image, *(Image("new", make_share("new")) for _ in range(9))]
    for image in new_images[1:]:
        scheduler.add(image)
    rows = count_rows(run(scheduler, 200, 8))
    assert rows["new"] == pytest.approx(rows["old"], rel=0.05)


def test_a_modest_user_saves_up_no_lasting_credit() -> None:
    modest_image = Image("m", make_share("modest"))
    busy_images = [Image(f"b{job}", make_share("busy")) for job in range(10)]
    scheduler = build_scheduler(modest_image, *busy_images)
    run(scheduler, 1000, 8)  # modest took 2 of its 4 rows in each step
    for _ in range(10):
        scheduler.add(Image("m", make_share("modest")))
    rows = count_rows(run(scheduler, 400, 8))
    assert rows["busy"] > 0.3 * rows.total()


def test_leaving_and_returning_gains_no_rows() -> None:
    scheduler = build_scheduler(*(Image(f"s{job}", make_share("steady")) for job in range(10)))
    rows = 0
    for round_number in range(100):
        images = [Image(f"f{round_number}", make_share("fickle")) for _ in range(10)]
        for image in images:
            scheduler.add(image)
        rows += count_rows(run(scheduler, 3, 8))["fickle"]
        for image in images:
            scheduler.remove(image)
    assert rows <= 0.55 * 100 * 3 * 8


def test_groups_alternate_in_turns_of_several_steps() -> None:
    images = [
        Image(f"{key}{job}", make_share(key), key=key) for key in ("m1", "m2") for job in range(4)
    ]  # one user per group
    keys = [batch[0].key for batch in run(build_scheduler(*images), 160, 8)]
    switch_count = sum(a != b for a, b in pairwise(keys))
    assert switch_count <= 160 / 8
    assert Counter(keys)["m1"] == pytest.approx(80, abs=9)


def test_a_group_with_more_users_gets_more_of_the_device() -> None:
    many_images = [Image(f"j{user}", make_share(f"user{user}"), key="m1") for user in range(4)]
    batches = run(build_scheduler(*many_images, Image("l", make_share("lone"), key="m2")), 400, 8)
    times = Counter[Hashable]()
    for batch in batches:
        times[batch[0].key] += sum(image.rows for image in batch)
    assert times["m1"] / times["m2"] == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("sizes", [2, 3, 8])
def test_a_user_with_many_sizes_gets_no_more_than_with_one(sizes: int) -> None:
    many_images = [Image(f"m{size}", make_share("many"), key=f"size {size}") for size in range(sizes)]
    rows = count_rows(run(build_scheduler(Image("l", make_share("lone"), key="lone"), *many_images), 1600, 8))
    assert rows["lone"] == pytest.approx(rows["many"], rel=0.05)


def test_a_wide_image_is_passed_over_only_briefly() -> None:
    wide_image = Image("w", make_share("w"), rows=4)
    scheduler = build_scheduler(wide_image, *(Image(f"n{user}", make_share(f"n{user}"), rows=3) for user in range(3)))
    batches = run(scheduler, 60, 6)
    assert wide_image.k >= 15
    assert max(len(batch) for batch in batches) == 2


def test_an_image_wider_than_the_batch_runs_alone() -> None:
    wide_image = Image("w", make_share("w"), rows=9)
    narrow_image = Image("n", make_share("n"), rows=1)
    batches = run(build_scheduler(wide_image, narrow_image), 40, 4)
    assert [wide_image] in batches
    assert min(wide_image.k, narrow_image.k) > 0


def test_images_of_a_job_keep_pace() -> None:
    images = [Image("j", make_share("u"), rows=2) for _ in range(4)]
    run(build_scheduler(*images), 30, 6)
    assert max(image.k for image in images) - min(image.k for image in images) <= 1


def total_cost(batches: list[list[Image]], user: str) -> float:
    return sum(image.rows * image.row_ms for batch in batches for image in batch if image.billing_key.user == user)


@pytest.mark.sampled
@pytest.mark.parametrize("price", [1.0, 5.0, 64.0])
def test_users_get_equal_device_time_at_any_picture_size(price: float) -> None:
    small = [Image(f"s{job}", make_share("small"), key="64", row_ms=1.0) for job in range(20)]
    large = [Image(f"l{job}", make_share("large"), key="1024", row_ms=price) for job in range(20)]
    batches = run(build_scheduler(*small, *large), 4000, 8)
    assert total_cost(batches, "small") == pytest.approx(total_cost(batches, "large"), rel=0.05)


def test_a_user_alone_in_a_group_loses_nothing_to_a_shared_group() -> None:
    modest_image = Image("m", make_share("modest"), key="shared")
    busy_images = [Image(f"b{job}", make_share("busy"), key="shared") for job in range(10)]
    lone_images = [Image(f"l{job}", make_share("lone"), key="alone") for job in range(10)]
    batches = run(build_scheduler(modest_image, *busy_images, *lone_images), 900, 8)
    assert total_cost(batches, "lone") == pytest.approx(900 * 8 / 3, rel=0.03)
    assert modest_image.k == pytest.approx(600, rel=0.03)  # it is in every batch of its group


def test_a_row_is_charged_as_it_was_at_the_choice() -> None:
    class ChangingImage(Image):
        """An image with guidance in 80 of each 100 steps; rows and key follow."""

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "k":
                self.rows, self.key = (2, "guided") if self.k % 100 < 80 else (1, "unguided")

    halving_images = [ChangingImage(f"h{job}", make_share("halving")) for job in range(10)]
    steady_images = [Image(f"s{job}", make_share("steady"), key="guided") for job in range(10)]
    scheduler = build_scheduler(*halving_images, *steady_images)
    rows = Counter[str]()
    for _ in range(3000):
        batch = scheduler.next_batch(8)
        for image in batch:
            rows[image.billing_key.user] += image.rows
            image.k += 1
        scheduler.charge(batch)
    assert rows["halving"] == pytest.approx(rows["steady"], rel=0.1)
    assert max(image.k for image in halving_images) - min(image.k for image in halving_images) <= 20


def test_a_paused_job_takes_no_rows_and_stays_registered() -> None:
    images = [Image("one", make_share("u")) for _ in range(2)] + [Image("two", make_share("v")) for _ in range(2)]
    scheduler = build_scheduler(*images)
    scheduler.pause("one")
    assert scheduler.active_rows == 4
    assert len(scheduler) == 4
    assert {image.job for batch in run(scheduler, 5, 8) for image in batch} == {"two"}
    scheduler.pause("two")
    assert scheduler.next_batch(8) == []
    assert scheduler.is_idle
    scheduler.charge([])
    scheduler.resume("one")
    assert {image.job for image in scheduler.next_batch(8)} == {"one"}
    for image in images:
        scheduler.remove(image)
    assert len(scheduler) == 0


def test_an_image_added_to_a_paused_job_is_paused_too() -> None:
    scheduler = build_scheduler(first := Image("j", make_share("u")))
    scheduler.pause("j")
    scheduler.add(second := Image("j", make_share("u")))
    assert scheduler.next_batch(8) == []
    scheduler.resume("j")
    assert set(map(id, scheduler.next_batch(8))) == {id(first), id(second)}
    scheduler.remove(first)
    scheduler.remove(second)
    scheduler.pause("j")  # the job has left: nothing pauses, and a later job with this id does not pause
    scheduler.add(Image("j", make_share("u")))
    assert scheduler.next_batch(8)


def test_a_pause_earns_no_credit_and_clears_no_debt() -> None:
    own_images, other_images = (
        [Image(f"{user}{n}", make_share(user)) for n in range(10)] for user in ("mine", "others")
    )
    scheduler = build_scheduler(*own_images, *other_images)
    for round_number in range(60):
        for image in own_images:
            (scheduler.pause if round_number % 2 == 0 else scheduler.resume)(image.job)
        rows = count_rows(run(scheduler, 5, 8))
        assert rows["mine"] == (0 if round_number % 2 == 0 else pytest.approx(20, abs=4))


def test_repeated_pausing_and_resuming_gains_no_rows() -> None:
    own_image = Image("mine", make_share("mine"))
    scheduler = build_scheduler(own_image, *(Image(f"o{user}", make_share(f"o{user}")) for user in range(15)))
    for _ in range(400):
        scheduler.pause("mine")
        scheduler.resume("mine")
        run(scheduler, 1, 8)
    assert own_image.k <= 400 * 4 / 16 + 2


def test_a_stream_of_one_step_jobs_gets_no_more_than_its_share() -> None:
    scheduler = build_scheduler(*(Image(f"o{user}", make_share(f"o{user}")) for user in range(15)))
    own_rows = 0
    for round_number in range(400):
        scheduler.add(image := Image(f"mine{round_number}", make_share("mine")))
        own_rows += count_rows(run(scheduler, 1, 8))["mine"]
        scheduler.remove(image)
    assert own_rows <= 400 * 8 / 16 + 8 + 2


def test_priority_moves_rows_only_between_jobs_of_one_user() -> None:
    own_images = [Image(job, make_share("mine")) for job in ("dear", "dull") for _ in range(10)]
    other_images = [Image("other", make_share("other")) for _ in range(10)]
    scheduler = build_scheduler(*own_images, *other_images)
    scheduler.set_job_weight("dear", 3.0)
    rows = Counter[str]()
    for batch in run(scheduler, 400, 8):
        for image in batch:
            rows[image.job] += image.rows
    assert rows["dear"] / rows["dull"] == pytest.approx(3.0, rel=0.05)
    assert rows["other"] == pytest.approx(rows["dear"] + rows["dull"], rel=0.02)
    scheduler.set_job_weight("unknown", 2.0)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1001.0, float("nan")])
def test_an_invalid_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="a job's weight is above 0"):
        build_scheduler(Image("j", make_share("u"))).set_job_weight("j", weight)


def test_an_expensive_group_ends_its_turn_by_cost() -> None:
    dear_images = [Image(f"d{job}", make_share("dear"), key="1024", row_ms=200.0) for job in range(4)]
    cheap_images = [Image(f"c{job}", make_share("cheap"), key="64", row_ms=1.0) for job in range(4)]
    keys = [batch[0].key for batch in run(build_scheduler(*dear_images, *cheap_images), 2000, 8)]
    runs = [len(list(each)) for key, each in groupby(keys) if key == "1024"]
    assert max(runs) == 1  # a step of 8 rows costs 1.6 s, and the other group waits


@given(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([1.0, 3.0, 20.0, 150.0])), min_size=2, max_size=4),
    st.lists(st.integers(0, 30), max_size=6),
)
@settings(deadline=None, max_examples=30)
def test_groups_share_the_device_by_their_users(groups: list[tuple[int, float]], visits: list[int]) -> None:
    """|T_a/C_a - T_b/C_b| ≤ L/C_a + L/C_b over every interval, while other groups come and go."""
    scheduler: Scheduler[Image] = Scheduler(turn_steps=4, quantum=500.0)
    for number, (users, price) in enumerate(groups):
        for user in range(users):
            for _ in range(5):
                scheduler.add(Image(f"j{number}.{user}", make_share(f"{number}.{user}"), key=number, row_ms=price))
    times = defaultdict[Hashable, float](float)
    spans = dict[tuple[int, int], tuple[float, float]]()
    guests: list[Image] = []
    for length in [20, *visits, 20]:
        for guest in guests:
            scheduler.remove(guest)
        guests = [
            Image(f"g{length}", make_share(f"guest {length}"), key=f"visit {length}", row_ms=9.0) for _ in range(3)
        ]
        for guest in guests:
            scheduler.add(guest)
        for [batch] in (run(scheduler, 1, 8) for _ in range(length)):
            times[batch[0].key] += sum(image.rows * image.row_ms for image in batch)
            for a, b in permutations(range(len(groups)), 2):
                difference = times[a] / groups[a][0] - times[b] / groups[b][0]
                lower, upper = spans.get((a, b), (0.0, 0.0))
                spans[a, b] = min(lower, difference), max(upper, difference)
    max_gaps = [min(4 * 8 * price, 500.0 + 8 * price) for _, price in groups]
    for (a, b), (lower, upper) in spans.items():
        assert upper - lower <= max_gaps[a] / groups[a][0] + max_gaps[b] / groups[b][0] + 1e-6


def test_a_new_job_joins_the_next_batch_even_if_its_user_was_just_served() -> None:
    scheduler = build_scheduler(*(Image(f"o{user}", make_share(f"o{user}")) for user in range(16)))
    run(scheduler, 8, 8)
    for round_number in range(20):
        (batch,) = run(scheduler, 1, 8)
        scheduler.add(new_image := Image(f"new {round_number}", batch[0].billing_key))
        (batch,) = run(scheduler, 1, 8)
        assert new_image in batch
        scheduler.remove(new_image)


def test_a_passed_over_image_that_fits_beside_no_other_goes_first() -> None:
    narrow_images = [Image("v", make_share("v")) for _ in range(4)]
    wide_image = Image("u", make_share("u"), rows=7)
    more_images = [Image("u", make_share("u")) for _ in range(4)]
    run(build_scheduler(*narrow_images, wide_image, *more_images), 100, 8)
    assert wide_image.k >= 25


def test_a_user_in_two_groups_gains_no_device_time() -> None:
    both_images = [Image(f"b{job}", make_share("both"), key="shared" if job % 2 else "own") for job in range(20)]
    lone_images = [Image(f"l{job}", make_share("lone"), key="shared") for job in range(10)]
    batches = run(build_scheduler(*both_images, *lone_images), 1600, 8)
    assert total_cost(batches, "both") == pytest.approx(total_cost(batches, "lone"), rel=0.05)


def test_images_of_one_job_with_different_keys_keep_pace() -> None:
    late_image = Image("j", make_share("u"), key="unguided", k=20)
    early_image = Image("j", make_share("u"), key="guided")
    run(build_scheduler(late_image, early_image), 100, 8)
    assert abs(late_image.k - early_image.k) <= 8  # one turn
