"""The states of a job and the table of allowed transitions. Pure; the store enforces it in SQL.

A job is `queued` (only SQL knows it), `sent` (the broker has it), `running` (a worker claimed it) and ends in exactly
one of `finished`, `failed`, `cancelled`. An end state is final.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

State = Literal["queued", "sent", "running", "finished", "failed", "cancelled"]
Move = Literal["send", "start", "requeue", "finish", "fail", "cancel"]

WAITING: tuple[State, ...] = ("queued",)
ACTIVE: tuple[State, ...] = ("sent", "running")
OPEN: tuple[State, ...] = ("queued", "sent", "running")
ENDS: tuple[State, ...] = ("finished", "failed", "cancelled")


@dataclass(frozen=True)
class Rule:
    """The states from which a move may start, and the state it leads to."""

    sources: tuple[State, ...]
    target: State


# A job may be queued again because its lease seemed lost, while a worker still runs it. Its results are welcome, so
# `start` and `finish` also leave `queued`. Epochs (not states) keep a stale worker out.
TRANSITIONS: Mapping[Move, Rule] = MappingProxyType(
    {
        "send": Rule(("queued",), "sent"),
        "start": Rule(OPEN, "running"),
        "requeue": Rule(ACTIVE, "queued"),
        "finish": Rule(OPEN, "finished"),
        "fail": Rule(OPEN, "failed"),
        "cancel": Rule(OPEN, "cancelled"),
    }
)


def allowed(move: Move, state: State) -> bool:
    """Return whether a job in `state` may make this `move`."""
    return state in TRANSITIONS[move].sources


def over(state: State) -> bool:
    """Return whether a state is an end state."""
    return state in ENDS
