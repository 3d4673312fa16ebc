"""The estimated place in the queue, as if members took turns: the fair order of equal members."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bot.policy.fair_queue import WaitEstimate

users = st.lists(st.integers(1, 30), max_size=20)


@given(users, st.integers(0, 29))
def test_every_member_gets_their_turns_before_the_job(counts: list[int], position: int) -> None:
    own_turn = position + 1
    jobs, work = WaitEstimate([*((count, 2.0) for count in counts), (own_turn, 2.0)]).estimate(position)
    assert jobs == sum(min(count, own_turn) for count in counts) + position
    assert work == 2.0 * (jobs + 1)


def test_each_members_own_cost_counts_and_an_empty_queue_costs_nothing() -> None:
    assert WaitEstimate([(3, 1.0), (1, 10.0)]).estimate(1) == (2, 12.0)
    assert WaitEstimate().estimate(5) == (0, 0.0)
