"""The fair order: shares by weight, no starvation, and a flood that delays only its own member."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bot.policy.fair_queue import (
    Account,
    WaitingJob,
    account_name,
    account_paths,
    ancestor_paths,
    charge_time,
    dispatch_order,
    entry_time,
    parent_path,
)
from engine.contract import BillingKey


def tree(*users: str, weights: dict[str, float] | None = None, virtual: dict[str, float] | None = None):
    paths = {path for one in users for path in ancestor_paths(one)}
    return {
        path: Account(
            path, parent_path(path), (virtual or {}).get(path, 0.0), 0.0, (weights or {}).get(path, 1.0), 1, 0
        )
        for path in paths
    }


def jobs(account: str, costs: list[float]) -> list[WaitingJob]:
    return [WaitingJob(f"{account}#{number:05}", account, cost) for number, cost in enumerate(costs)]


def test_paths_are_unambiguous_for_any_names():
    path_list = account_paths("default", BillingKey(tier="a/b", guild="", user="ü/%2F"))
    assert len(path_list) == 4
    assert ancestor_paths(path_list[-1]) == path_list
    assert account_name(path_list[-1]) == "ü/%2F"
    assert parent_path(path_list[0]) == ""
    assert path_list != account_paths("default", BillingKey(tier="a", guild="b", user="ü/%2F"))


def test_newcomers_pass_the_flood_of_one_member():
    accounts = tree("p/t/g/flood", "p/t/g/b", "p/t/g/c", virtual={"p/t/g/flood": 80.0, "p/t/g/b": 80, "p/t/g/c": 80})
    waiting_jobs = jobs("p/t/g/flood", [1.0] * 80) + jobs("p/t/g/b", [1.0] * 5) + jobs("p/t/g/c", [4.0] * 5)
    first = list(itertools.islice(dispatch_order(accounts, waiting_jobs), 15))
    assert sum("/b#" in job for job in first) == 5
    assert sum("/c#" in job for job in first) >= 2


def test_a_guild_of_ten_members_gets_the_share_of_one_guild():
    member_paths = [f"p/t/big/u{number}" for number in range(10)]
    accounts = tree(*member_paths, "p/t/small/u")
    waiting_jobs = [one for path in member_paths for one in jobs(path, [1.0] * 10)] + jobs("p/t/small/u", [1.0] * 30)
    first = list(itertools.islice(dispatch_order(accounts, waiting_jobs), 40))
    assert sum("/small/" in job for job in first) == 20


def test_weights_decide_the_shares():
    accounts = tree("p/gold/g/a", "p/plain/g/b", weights={"p/gold": 3.0})
    waiting_jobs = jobs("p/gold/g/a", [2.0] * 60) + jobs("p/plain/g/b", [2.0] * 60)
    first = list(itertools.islice(dispatch_order(accounts, waiting_jobs), 40))
    assert sum("/gold/" in job for job in first) == 30


def test_an_idle_account_saves_up_no_share():
    assert entry_time(3.0, 50.0) == 50.0
    assert entry_time(60.0, 50.0) == 60.0
    assert charge_time(10.0, 6.0, 3.0) == 12.0


users = st.sampled_from([f"p/{tier}/{guild}/{one}" for tier in "st" for guild in "gh" for one in "abc"])
costs = st.floats(0.1, 50)


@given(st.lists(st.tuples(users, costs), min_size=1, max_size=80))
def test_each_job_is_served_once_and_each_members_jobs_in_order_of_arrival(requests):
    waiting_jobs = [WaitingJob(f"{number:05}", account, cost) for number, (account, cost) in enumerate(requests)]
    dispatched = list(dispatch_order(tree(*{account for account, _ in requests}), waiting_jobs))
    assert sorted(dispatched) == [one.job for one in waiting_jobs]
    for account in {account for account, _ in requests}:
        account_jobs = [one.job for one in waiting_jobs if one.account == account]
        assert [job for job in dispatched if job in account_jobs] == account_jobs


@given(st.lists(st.tuples(users, costs), min_size=2, max_size=80), st.floats(0.5, 4))
def test_no_sibling_gets_ahead_by_more_than_one_job_each(requests, weight):
    """SFQ's bound (Goyal et al. 1996, theorem 1): while two wait, their normalised service differs by l/w + l'/w'."""
    weights = {"p/s": weight}
    waiting_jobs = [WaitingJob(f"{number:05}", account, cost) for number, (account, cost) in enumerate(requests)]
    cost = {one.job: one.cost for one in waiting_jobs}
    tier = {one.job: one.account.split("/")[1] for one in waiting_jobs}
    remaining_by_tier = {name: sum(one == name for one in tier.values()) for name in "st"}
    service = {"s": 0.0, "t": 0.0}
    for job in dispatch_order(tree(*{account for account, _ in requests}, weights=weights), waiting_jobs):
        if not all(remaining_by_tier.values()):
            break
        service[tier[job]] += cost[job] / (weight if tier[job] == "s" else 1.0)
        remaining_by_tier[tier[job]] -= 1
        assert abs(service["s"] - service["t"]) <= 50 / weight + 50 + 1e-6
