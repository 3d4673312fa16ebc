"""The states of a job and the table of allowed transitions. Pure; the store enforces it in SQL.

A job is `queued` (only SQL knows it), then `sent` (the broker has it), then `running` (a worker claimed it). It ends in
exactly one of `finished`, `failed`, `cancelled`. An end state is final.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

JobState = Literal["queued", "sent", "running", "finished", "failed", "cancelled"]
TransitionKind = Literal["send", "start", "requeue", "finish", "fail", "cancel"]

ACTIVE_STATES: tuple[JobState, ...] = ("sent", "running")
OPEN_STATES: tuple[JobState, ...] = ("queued", "sent", "running")
END_STATES: tuple[JobState, ...] = ("finished", "failed", "cancelled")


@dataclass(frozen=True)
class TransitionRule:
    """The states from which a transition may start, and the state to which it leads."""

    sources: tuple[JobState, ...]
    target: JobState


# A job may be queued again because its lease seemed lost, while a worker still runs it. Its results are welcome, so
# `start` and `finish` also leave `queued`. Epochs (not states) keep a stale worker out.
TRANSITIONS: Mapping[TransitionKind, TransitionRule] = MappingProxyType(
    {
        "send": TransitionRule(("queued",), "sent"),
        "start": TransitionRule(OPEN_STATES, "running"),
        "requeue": TransitionRule(ACTIVE_STATES, "queued"),
        "finish": TransitionRule(OPEN_STATES, "finished"),
        "fail": TransitionRule(OPEN_STATES, "failed"),
        "cancel": TransitionRule(OPEN_STATES, "cancelled"),
    }
)


def is_end(state: JobState) -> bool:
    """Return whether a state is an end state."""
    return state in END_STATES
