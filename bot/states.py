"""The states of a job and the one table of allowed transitions. Pure; the store enforces it in SQL.

A job is `queued` (only SQL knows it), `sent` (the broker has it), `running` (a worker claimed it) and ends in exactly
one of `finished`, `failed`, `cancelled`. Nothing leaves an end state.
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
    """From which states a move may start and where it leads."""

    sources: tuple[State, ...]
    target: State


# A worker may still hold a job that was queued again when its lease seemed lost: what it reports is welcome, so `start`
# and `finish` also leave `queued`. Epochs (not states) keep a stale worker out.
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
    """True if a job in `state` may make this `move`."""
    return state in TRANSITIONS[move].sources


def over(state: State) -> bool:
    """True for an end state."""
    return state in ENDS
