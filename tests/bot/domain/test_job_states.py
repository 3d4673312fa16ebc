"""The table of transitions: the allowed ones, and no job leaves an end state."""

from __future__ import annotations

from typing import get_args

import pytest

from bot.domain.job_states import ACTIVE_STATES, END_STATES, OPEN_STATES, TRANSITIONS, JobState, TransitionKind, is_end


def test_every_move_is_in_the_table_and_every_state_in_one_group():
    assert set(TRANSITIONS) == set(get_args(TransitionKind))
    assert set(OPEN_STATES) | set(END_STATES) == set(get_args(JobState))
    assert {"queued", *ACTIVE_STATES} == set(OPEN_STATES)


@pytest.mark.parametrize("transition", get_args(TransitionKind))
@pytest.mark.parametrize("state", END_STATES)
def test_no_move_leaves_an_end_state(transition, state):
    assert is_end(state)
    assert state not in TRANSITIONS[transition].sources


def test_every_end_state_can_be_reached_from_every_open_state():
    for transition in ("finish", "fail", "cancel"):
        assert is_end(TRANSITIONS[transition].target)
        assert set(TRANSITIONS[transition].sources) == set(OPEN_STATES)


def test_only_queued_jobs_are_sent_and_only_sent_or_running_ones_requeued():
    assert TRANSITIONS["send"].sources == ("queued",)
    assert TRANSITIONS["requeue"].sources == ("sent", "running")


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        TRANSITIONS["send"] = TRANSITIONS["fail"]  # pyright: ignore[reportIndexIssue] - that is what is tested
