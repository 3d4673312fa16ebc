"""The table of transitions: what it allows, and that no job leaves an end state."""

from __future__ import annotations

from typing import get_args

import pytest

from bot.states import ACTIVE, ENDS, OPEN, TRANSITIONS, WAITING, Move, State, allowed, over


def test_every_move_is_in_the_table_and_every_state_in_one_group():
    assert set(TRANSITIONS) == set(get_args(Move))
    assert set(OPEN) | set(ENDS) == set(get_args(State))
    assert set(WAITING) | set(ACTIVE) == set(OPEN)


@pytest.mark.parametrize("move", get_args(Move))
@pytest.mark.parametrize("state", ENDS)
def test_no_move_leaves_an_end_state(move, state):
    assert over(state)
    assert not allowed(move, state)


def test_every_end_state_can_be_reached_from_every_open_state():
    for move in ("finish", "fail", "cancel"):
        assert over(TRANSITIONS[move].target)
        assert all(allowed(move, state) for state in OPEN)


def test_only_queued_jobs_are_sent_and_only_sent_or_running_ones_requeued():
    assert [state for state in get_args(State) if allowed("send", state)] == ["queued"]
    assert [state for state in get_args(State) if allowed("requeue", state)] == ["sent", "running"]


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        TRANSITIONS["send"] = TRANSITIONS["fail"]  # pyright: ignore[reportIndexIssue] - that is what is tested
