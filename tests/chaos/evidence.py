"""What a campaign left behind as plain values: what was accepted, what tables, API, Discord and broker say. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ENDS = ("finished", "failed", "cancelled")


@dataclass(frozen=True)
class Wish:
    """A recipe that is asked for again and again; `exact` pins the batch, so that the real engine repeats its bytes."""

    prompt: str
    seed: int
    steps: int
    count: int


@dataclass(frozen=True)
class Accepted:
    """A job that somebody was promised. `by`: web or discord; `ends`: the ends that the API was seen to say of it."""

    job: str
    wish: Wish
    by: str
    ends: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobRow:
    """What invariants need of the table `jobs`."""

    id: str
    state: str
    key: str | None
    ordinal: int
    tier: str
    pool: str
    account: str
    cost: float
    charged: float
    billed: float
    steps: int
    step: int  # as far as it is known to have come
    count: int
    blame: str
    reason: str
    created: float
    ended: float | None


@dataclass(frozen=True)
class Move:
    """One line of the audit. `epoch`: of the claim under which it happened."""

    id: int
    job: str
    source: str
    target: str
    why: str
    epoch: int = 0


@dataclass(frozen=True)
class PlaceRow:
    """Where a job is to be shown, and whether it was."""

    job: str
    role: str
    kind: str
    delivered: float | None
    reason: str


@dataclass(frozen=True)
class Account:
    """One node of the fair order."""

    path: str
    parent: str
    virtual: float
    weight: float
    queued: int
    active: int


@dataclass(frozen=True)
class Shown:
    """A job as the API shows it: its state, and each picture's promised and true SHA-256 (empty: it is not there)."""

    state: str
    pictures: tuple[tuple[int, str, str], ...] = ()


@dataclass(frozen=True)
class Setback:
    """A running job lost its worker. `again`: seconds until it went on; `back`: seconds of work that were repeated.

    `alone`: no other plug was out in between, and no snapshot could be lost.
    """

    job: str
    worker: str
    how: str
    again: float | None
    back: float | None
    alone: bool


@dataclass(frozen=True)
class Evidence:
    """Everything. `posted`: job → how many messages with its finished picture stand in Discord; `left`: stream → what
    the broker still has of it; `references`: the bytes of an undisturbed run, as SHA-256 by image, which those repeat
    who ask as in `repeats` (a real engine repeats its bytes where the batch is pinned, and Discord has no such option).
    """

    accepted: tuple[Accepted, ...] = ()
    jobs: tuple[JobRow, ...] = ()
    moves: tuple[Move, ...] = ()
    places: tuple[PlaceRow, ...] = ()
    accounts: tuple[Account, ...] = ()
    api: Mapping[str, Shown] = field(default_factory=dict)
    posted: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, int] = field(default_factory=dict)
    references: Mapping[Wish, tuple[str, ...]] = field(default_factory=dict)
    repeats: tuple[str, ...] = ("web", "discord")
    setbacks: tuple[Setback, ...] = ()
