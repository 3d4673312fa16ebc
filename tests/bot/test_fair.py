"""The fair order: shares by weight, no starvation, floods only behind themselves."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bot.fair import Account, Waiting, ancestry, charge, entry, order, parent, paths, user
from engine.job import Share


def tree(*users: str, weights: dict[str, float] | None = None, virtual: dict[str, float] | None = None):
    found = {path for one in users for path in ancestry(one)}
    return {
        path: Account(path, parent(path), (virtual or {}).get(path, 0.0), 0.0, (weights or {}).get(path, 1.0), 1, 0)
        for path in found
    }


def jobs(account: str, costs: list[float]) -> list[Waiting]:
    return [Waiting(f"{account}#{number:05}", account, cost) for number, cost in enumerate(costs)]


def test_paths_are_unambiguous_whatever_the_names_hold():
    made = paths("default", Share(tier="a/b", guild="", user="ü/%2F"))
    assert len(made) == 4
    assert ancestry(made[-1]) == made
    assert user(made[-1]) == "ü/%2F"
    assert parent(made[0]) == ""
    assert made != paths("default", Share(tier="a", guild="b", user="ü/%2F"))


def test_a_flood_queues_behind_itself_and_newcomers_pass_it():
    accounts = tree("p/t/g/flood", "p/t/g/b", "p/t/g/c", virtual={"p/t/g/flood": 80.0, "p/t/g/b": 80, "p/t/g/c": 80})
    waiting = jobs("p/t/g/flood", [1.0] * 80) + jobs("p/t/g/b", [1.0] * 5) + jobs("p/t/g/c", [4.0] * 5)
    first = list(itertools.islice(order(accounts, waiting), 15))
    assert sum("/b#" in job for job in first) == 5
    assert sum("/c#" in job for job in first) >= 2


def test_a_guild_of_ten_gets_one_guilds_share():
    many = [f"p/t/big/u{number}" for number in range(10)]
    accounts = tree(*many, "p/t/small/u")
    waiting = [one for path in many for one in jobs(path, [1.0] * 10)] + jobs("p/t/small/u", [1.0] * 30)
    first = list(itertools.islice(order(accounts, waiting), 40))
    assert sum("/small/" in job for job in first) == 20


def test_weights_divide_the_time():
    accounts = tree("p/gold/g/a", "p/plain/g/b", weights={"p/gold": 3.0})
    waiting = jobs("p/gold/g/a", [2.0] * 60) + jobs("p/plain/g/b", [2.0] * 60)
    first = list(itertools.islice(order(accounts, waiting), 40))
    assert sum("/gold/" in job for job in first) == 30


def test_idling_saves_nothing_up():
    assert entry(3.0, 50.0) == 50.0
    assert entry(60.0, 50.0) == 60.0
    assert charge(10.0, 6.0, 3.0) == 12.0


users = st.sampled_from([f"p/{tier}/{guild}/{one}" for tier in "st" for guild in "gh" for one in "abc"])
costs = st.floats(0.1, 50)


@given(st.lists(st.tuples(users, costs), min_size=1, max_size=80))
def test_everyone_is_served_once_and_a_user_in_order_of_arrival(asked):
    waiting = [Waiting(f"{number:05}", account, cost) for number, (account, cost) in enumerate(asked)]
    served = list(order(tree(*{account for account, _ in asked}), waiting))
    assert sorted(served) == [one.job for one in waiting]
    for account in {account for account, _ in asked}:
        mine = [one.job for one in waiting if one.account == account]
        assert [job for job in served if job in mine] == mine


@given(st.lists(st.tuples(users, costs), min_size=2, max_size=80), st.floats(0.5, 4))
def test_no_sibling_runs_ahead_by_more_than_one_job_each(asked, weight):
    """SFQ's bound (Goyal et al. 1996, theorem 1): while two wait, their normalised service differs by l/w + l'/w'."""
    weights = {"p/s": weight}
    waiting = [Waiting(f"{number:05}", account, cost) for number, (account, cost) in enumerate(asked)]
    cost = {one.job: one.cost for one in waiting}
    tier = {one.job: one.account.split("/")[1] for one in waiting}
    left = {name: sum(one == name for one in tier.values()) for name in "st"}
    had = {"s": 0.0, "t": 0.0}
    for job in order(tree(*{account for account, _ in asked}, weights=weights), waiting):
        if not all(left.values()):
            break
        had[tier[job]] += cost[job] / (weight if tier[job] == "s" else 1.0)
        left[tier[job]] -= 1
        assert abs(had["s"] - had["t"]) <= 50 / weight + 50 + 1e-6
