"""The fair order of row-steps, as properties: nobody starves, no room is wasted, weights hold, groups do not thrash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.job import Share
from engine.scheduler import Scheduler


@dataclass(eq=False)
class Image:
    """An image that never ends; `k` counts its steps."""

    job: str
    share: Share
    rows: int = 2
    key: Hashable = "one model"
    k: int = 0


def share(user: str, guild: str = "g", tier: str = "t", weight: float = 1.0) -> Share:
    return Share(tier=tier, guild=guild, user=user, weight=weight)


def run(scheduler: Scheduler[Image], steps: int, limit: int) -> list[list[Image]]:
    batches = []
    for _ in range(steps):
        batch = scheduler.next(limit)
        scheduler.charge(batch)
        for image in batch:
            image.k += 1
        batches.append(batch)
    return batches


def served(batches: list[list[Image]], level: str = "user") -> Counter[str]:
    rows: Counter[str] = Counter()
    for batch in batches:
        for image in batch:
            rows[getattr(image.share, level)] += image.rows
    return rows


def filled(*images: Image) -> Scheduler[Image]:
    scheduler: Scheduler[Image] = Scheduler()
    for image in images:
        scheduler.add(image)
    return scheduler


def any_image(number: int, user: str, guild: str, tier: str) -> Image:
    """An image of one of ten jobs of its user; rows and key are the job's."""
    return Image(f"{tier}{guild}{user}{number}", share(user, guild, tier), 1 + number % 5, f"model {number % 2}")


crowd = st.lists(
    st.builds(any_image, st.integers(0, 9), st.sampled_from("abc"), st.sampled_from("xy"), st.sampled_from("st")),
    min_size=1,
    max_size=20,
)


@given(crowd, st.integers(4, 20))
@settings(deadline=None, max_examples=25)
def test_nobody_starves(images: list[Image], limit: int) -> None:
    scheduler = filled(*images)
    for _ in range(100):
        run(scheduler, len(images), limit)
        if all(image.k for image in images):
            return
    raise AssertionError([image for image in images if not image.k])


@given(crowd, st.integers(5, 20))
@settings(deadline=None, max_examples=25)
def test_no_room_is_left_that_somebody_could_use(images: list[Image], limit: int) -> None:
    scheduler = filled(*images)
    for batch in run(scheduler, 30, limit):
        rows = sum(image.rows for image in batch)
        assert 0 < rows <= limit
        assert len({image.key for image in batch}) == 1
        assert len(set(map(id, batch))) == len(batch)
        waiting = [image for image in images if image.key == batch[0].key and image not in batch]
        assert all(rows + image.rows > limit for image in waiting)


@given(crowd, st.integers(4, 20))
@settings(deadline=None, max_examples=25)
def test_choosing_changes_nothing_until_it_is_charged(images: list[Image], limit: int) -> None:
    scheduler = filled(*images)
    run(scheduler, 7, limit)
    assert scheduler.next(limit) == scheduler.next(limit)


@given(crowd, st.data())
@settings(deadline=None, max_examples=25)
def test_coming_and_going_leaves_nothing_behind(images: list[Image], data: st.DataObject) -> None:
    scheduler = filled(*images)
    for image in data.draw(st.permutations(images)):
        run(scheduler, 2, 8)
        scheduler.remove(image)
    assert len(scheduler) == scheduler.rows == 0
    assert scheduler.next(8) == []
    assert run(filled(*images), 1, 8)[0]


def test_one_image_beside_anothers_twenty_jobs_has_half() -> None:
    hog = [Image(f"hog{job}", share("hog")) for job in range(20)]
    lone = [Image("lone", share("lone")) for _ in range(4)]
    rows = served(run(filled(*hog, *lone), 200, 8))
    assert rows["lone"] == pytest.approx(rows["hog"], rel=0.02)


def test_guilds_are_equal_whatever_their_size() -> None:
    small = [Image("s", share("only", "small")) for _ in range(8)]
    large = [Image(f"l{user}", share(f"user{user}", "large")) for user in range(20)]
    rows = served(run(filled(*small, *large), 300, 8), "guild")
    assert rows["small"] == pytest.approx(rows["large"], rel=0.02)


def test_a_tier_of_weight_three_has_three_quarters() -> None:
    plain = [Image("p", share("p", tier="standard")) for _ in range(8)]
    paying = [Image("q", share("q", tier="patron", weight=3.0)) for _ in range(8)]
    rows = served(run(filled(*plain, *paying), 400, 8), "tier")
    assert rows["patron"] / rows["standard"] == pytest.approx(3.0, rel=0.05)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.integers(6, 16))
@settings(deadline=None, max_examples=25)
def test_users_with_enough_to_do_stay_within_a_batch_of_each_other(jobs: list[int], limit: int) -> None:
    images = [
        Image(f"{user}/{job}", share(str(user))) for user, count in enumerate(jobs) for job in range(count + limit)
    ]
    rows = served(run(filled(*images), 40, limit))
    assert max(rows.values()) - min(rows.values()) <= limit


def test_a_newcomer_is_in_the_next_batch_and_owes_nothing_to_the_past() -> None:
    scheduler = filled(*(Image(f"old{job}", share("old")) for job in range(10)))
    run(scheduler, 200, 8)
    scheduler.add(newcomer := Image("new", share("new")))
    assert newcomer in scheduler.next(8)
    more = [newcomer, *(Image("new", share("new")) for _ in range(9))]
    for image in more[1:]:
        scheduler.add(image)
    rows = served(run(scheduler, 200, 8))
    assert rows["new"] == pytest.approx(rows["old"], rel=0.05)


def test_who_needed_little_for_long_is_not_owed_for_ever() -> None:
    modest, busy = Image("m", share("modest")), [Image(f"b{job}", share("busy")) for job in range(10)]
    scheduler = filled(modest, *busy)
    run(scheduler, 1000, 8)  # modest had 2 of its 4 rows all along
    for _ in range(10):
        scheduler.add(Image("m", share("modest")))
    rows = served(run(scheduler, 400, 8))
    assert rows["busy"] > 0.3 * rows.total()


def test_leaving_and_coming_back_wins_nothing() -> None:
    scheduler = filled(*(Image(f"s{job}", share("steady")) for job in range(10)))
    fickle = 0
    for turn in range(100):
        images = [Image(f"f{turn}", share("fickle")) for _ in range(10)]
        for image in images:
            scheduler.add(image)
        fickle += served(run(scheduler, 3, 8))["fickle"]
        for image in images:
            scheduler.remove(image)
    assert fickle <= 0.55 * 100 * 3 * 8


def test_a_group_is_kept_for_some_steps_and_both_get_their_turn() -> None:
    images = [Image(f"{key}{job}", share(key), key=key) for key in ("m1", "m2") for job in range(4)]  # a user each
    keys = [batch[0].key for batch in run(filled(*images), 160, 8)]
    switches = sum(a != b for a, b in pairwise(keys))
    assert switches <= 160 / 8
    assert Counter(keys)["m1"] == pytest.approx(80, abs=9)


def test_a_group_with_more_users_has_longer_turns() -> None:
    many = [Image(f"j{user}", share(f"user{user}"), key="m1") for user in range(4)]
    keys = Counter(batch[0].key for batch in run(filled(*many, Image("l", share("lone"), key="m2")), 200, 8))
    assert keys["m1"] / keys["m2"] == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("sizes", [2, 3, 8])
def test_many_sizes_win_their_user_no_more_than_one(sizes: int) -> None:
    many = [Image(f"m{size}", share("many"), key=f"size {size}") for size in range(sizes)]
    rows = served(run(filled(Image("l", share("lone"), key="lone"), *many), 1600, 8))
    assert rows["lone"] == pytest.approx(rows["many"], rel=0.05)


def test_a_wide_image_is_overtaken_once_and_not_for_ever() -> None:
    wide = Image("w", share("w"), rows=4)
    scheduler = filled(wide, *(Image(f"n{user}", share(f"n{user}"), rows=3) for user in range(3)))
    batches = run(scheduler, 60, 6)
    assert wide.k >= 15
    assert max(len(batch) for batch in batches) == 2


def test_an_image_wider_than_the_batch_goes_alone() -> None:
    wide, narrow = Image("w", share("w"), rows=9), Image("n", share("n"), rows=1)
    batches = run(filled(wide, narrow), 40, 4)
    assert [wide] in batches
    assert min(wide.k, narrow.k) > 0


def test_images_of_a_job_keep_pace() -> None:
    images = [Image("j", share("u"), rows=2) for _ in range(4)]
    run(filled(*images), 30, 6)
    assert max(image.k for image in images) - min(image.k for image in images) <= 1
