"""Nobody waits for ever: the overdue have their turns, and models that alternate are not loaded for every job."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, select
from sqlalchemy.pool import StaticPool
from ulid import ULID

from bot.passing import LOAD, Passing
from bot.store import Draft, Moved, Wish, moves
from bot.store.tables import accounts, metadata
from bot.views import Member, Place
from engine.job import Concept, Recipe

RECIPE = Recipe(
    concepts=(Concept(text="a lamp"),), model="embedded", sampler="ddim", steps=40, seed=7, guidance=3.0, width=64,
    height=64, dtype="float32",
)  # fmt: skip
ROWS = 8  # of a job
SECONDS = 10.0  # that each job takes
PATIENCE = 20.0
EVERY = 3


@contextmanager
def database() -> Iterator[Connection]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        metadata.create_all(connection)
        yield connection
    engine.dispose()


def put(connection: Connection, user: str, now: float, tier: str = "standard", **more: Any) -> str:
    values: dict[str, Any] = {
        "id": str(ULID()), "action": "imagine", "prompt": "a lamp", "notes": (), "task": RECIPE,
        "member": Member(user, user, more.pop("guild", "g"), tier), "place": Place("web", {}), "pool": "default",
        "model": "embedded", "cost": SECONDS, "created": now, "deadline": 10.0**9,
    }  # fmt: skip
    (record,) = moves.insert(connection, [Draft(**(values | more))], None, {"meagre": 0.001})
    return record.id


def send(connection: Connection, passing: Passing, now: float, *, overbook: float = 1.0, **more: Any) -> Moved | None:
    wish = Wish("default", more.pop("models", ("embedded",)), 1000, passing=passing, **more)
    return moves.pick(connection, wish, ROWS, overbook, now)


def finish(connection: Connection, job: str, now: float) -> None:
    moves.end(connection, "finish", job, now, SECONDS)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 3), st.lists(st.integers(1, 2), min_size=1, max_size=4), st.booleans())
def test_however_small_a_weight_and_whoever_keeps_coming_a_wait_is_bounded(waiters, stream, newcomers):
    """Users of a tier of weight 0.001 wait while others come without end. Each is sent within `EVERY` × (k + 1) sends
    after it became overdue, where k waited longer; the overbooked room cannot be filled by newcomers instead.
    """
    passing = Passing(patience=PATIENCE, every=EVERY)
    with database() as connection:
        poor = {put(connection, f"poor{n}", 0.0, "meagre"): n for n in range(waiters)}
        more = [put(connection, f"poor{n}", 0.0, "meagre") for n in range(waiters)]  # a second job each, for later
        now, coming, running, sends = 0.0, itertools.cycle(stream), list[tuple[float, str]](), 0
        late: dict[str, int] = {}
        for number in itertools.count():
            for one in range(next(coming)):
                put(connection, f"new{number}.{one}" if newcomers else f"rich{one}", now)
            while moved := send(connection, passing, now):
                running.append((now + SECONDS, moved.record.id))
                sends += now > PATIENCE
                if moved.record.id in poor:
                    late[moved.record.id] = sends
            if len(late) == len(poor):
                break
            now += SECONDS / 2
            for ends, job in [one for one in running if one[0] <= now]:
                finish(connection, job, now)
                running.remove((ends, job))
            assert sends <= EVERY * (waiters + 1), "nobody may wait longer"
        for job, sent in late.items():
            assert sent <= EVERY * (poor[job] + 1)
        assert more


def test_who_was_served_waits_anew_and_a_flood_gains_nothing():
    passing = Passing(patience=PATIENCE, every=2)
    with database() as connection:
        for _ in range(20):
            put(connection, "flood", 0.0)
        put(connection, "calm", 30.0)
        served = []
        for number in range(6):
            moved = send(connection, passing, 100.0 + number)
            assert moved is not None
            served.append(moved.record.member)
            finish(connection, moved.record.id, 100.0 + number)
        since = {row.path: row.since for row in connection.execute(select(accounts.c.path, accounts.c.since))}
    assert served[:2] == ["calm", "flood"] or served[:2] == ["flood", "calm"]
    assert since["default/standard/g/flood"] == 105.0


def test_whoever_is_overdue_and_may_not_run_holds_nobody_up():
    passing = Passing(patience=PATIENCE, every=1)
    with database() as connection:
        put(connection, "other", 0.0, model="elsewhere")
        put(connection, "capped", 1.0, running_everywhere=0)
        put(connection, "fine", 2.0)
        moved = send(connection, passing, 100.0)
        assert moved is not None
        assert moved.record.member == "fine"


def loads(prefers: bool, jobs: list[str]) -> tuple[int, float]:
    """One device that has room for one model, and jobs of two users: how many loads, and the longest that a job that
    was next was passed.
    """
    passing, taken = Passing(patience=10.0**6), 3.0  # a load takes as long
    with database() as connection:
        for number, model in enumerate(jobs):
            put(connection, f"of {model}", 0.0, model=model, id=f"{number:026}")
        now, memory, count, first, longest = 0.0, "", 0, dict[str, float](), 0.0
        for _ in jobs:
            warm = passing.warm("default", {memory} if memory else set(), now) if prefers else None
            head = _head(connection, now)
            first.setdefault(head, now)
            moved = send(connection, passing, now, models=("a", "b"), warm=warm)
            assert moved is not None
            longest = max(longest, now - first.pop(moved.record.id, now))
            count += moved.record.model != memory
            now += SECONDS / 10 + (taken if moved.record.model != memory else 0.0)
            memory = moved.record.model
            finish(connection, moved.record.id, now)
    return count, longest


def _head(connection: Connection, now: float) -> str:
    """The job that would be next by the fair order alone."""
    inside = connection.begin_nested()
    moved = send(connection, Passing(patience=10.0**6), now, models=("a", "b"))
    inside.rollback()
    assert moved is not None
    return moved.record.id


def test_two_models_that_alternate_are_loaded_far_less_often():
    without, _ = loads(False, ["a", "b"] * 10)
    with_it, longest = loads(True, ["a", "b"] * 10)
    assert without == 20
    assert with_it <= without / 5
    assert longest <= LOAD + 5.0  # and the job that was under way then


@settings(max_examples=5, deadline=None)
@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=20))
def test_whatever_comes_nobody_is_passed_for_longer(models):
    _, longest = loads(True, models)
    assert longest <= LOAD + 5.0


def test_what_is_on_its_way_into_memory_goes_first_until_it_is_there():
    passing = Passing()
    assert passing.warm("p", {"a"}, 0.0) == {"a"}
    passing.sent("p", "job", 1.0, fetches="b")
    assert passing.warm("p", {"a"}, 2.0) == {"b"}
    assert passing.warm("p", {"a", "b"}, 3.0) == {"a", "b"}
    assert passing.warm("p", {"a"}, 1.0 + 1000 * LOAD) == {"a"}, "a load that never came does not count for ever"


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 3)), max_size=60))
def test_a_job_is_passed_for_so_long_and_no_longer(looks):
    passing, first = Passing(), dict[str, float]()
    for now, job in sorted(looks):
        since = first.setdefault(str(job), now)
        assert passing.may_pass(str(job), now) == (now - since < LOAD)
