"""The evidence of a campaign as plain values: accepted jobs, and the state of tables, API, Discord and broker. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ENDS = ("finished", "failed", "cancelled")


@dataclass(frozen=True)
class JobSpec:
    """A recipe that members repeat. The API field `exact` pins its batch, so that the real engine repeats its bytes."""

    prompt: str
    seed: int
    steps: int
    count: int


@dataclass(frozen=True)
class Accepted:
    """A job that was accepted. `front_end`: web or discord. `reported_ends`: the ends that the API reported."""

    job: str
    spec: JobSpec
    front_end: str
    reported_ends: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecipeAmendment:
    """A change that a recipe holds from step `step` on. `change`: as JSON with sorted keys."""

    number: int
    step: int
    change: str


@dataclass(frozen=True)
class AmendmentRow:
    """A row of the table `amendments`. `state`: waiting, made or refused. `key`: of its request, as a hash."""

    job: str
    number: int
    key: str | None
    state: str
    step: int | None
    reason: str
    change: str


@dataclass(frozen=True)
class AskedAmendment:
    """A request to change a running job that the API accepted, and the numbers of the changes that it told of."""

    job: str
    key: str
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class ToldAmendment:
    """What the API told a member of a change: it is made from step `step` on."""

    job: str
    number: int
    step: int


@dataclass(frozen=True)
class RedrawnJob:
    """The pixels of a finished job's pictures, and of those drawn anew from its recipe: number → SHA-256."""

    pictures: Mapping[int, str]
    redrawn: Mapping[int, str]


@dataclass(frozen=True)
class JobRow:
    """The columns of the table `jobs` that invariants need."""

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
    step: int  # the last known step
    count: int
    blame: str
    reason: str
    created: float
    ended: float | None
    images: tuple[int, ...] = ()  # the numbers of its pictures, where steering changed them
    amendments: tuple[RecipeAmendment, ...] = ()  # as its recipe has them

    @property
    def picture_numbers(self) -> tuple[int, ...]:
        return self.images or tuple(range(1, self.count + 1))

    evaluated: tuple[int, ...] = ()  # the steps with an evaluation of the network, which are paid for; empty: all

    def find_done_share(self, step: int) -> float:
        """The share of its price that its steps before `step` are worth."""
        if not self.evaluated:
            return min(1.0, step / self.steps)
        return sum(evaluated < step for evaluated in self.evaluated) / len(self.evaluated)


@dataclass(frozen=True)
class Move:
    """One line of the audit. `epoch`: of its claim."""

    id: int
    job: str
    source: str
    target: str
    why: str
    epoch: int = 0


@dataclass(frozen=True)
class PlaceRow:
    """A destination of a job, and whether the job was shown there."""

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
class ApiJob:
    """A job by the API: its state, and each picture's promised and true SHA-256 (empty: the picture is missing)."""

    state: str
    pictures: tuple[tuple[int, str, str], ...] = ()


@dataclass(frozen=True)
class Setback:
    """A running job lost its worker. `resume_seconds`: until it continued. `repeated_seconds`: of repeated work.

    `is_isolated`: no other fault overlapped, and no snapshot could be lost.
    """

    job: str
    worker: str
    cause: str
    resume_seconds: float | None
    repeated_seconds: float | None
    is_isolated: bool


@dataclass(frozen=True)
class Evidence:
    """All evidence. `posted_counts`: job → how many messages in Discord show its finished picture.

    `messages_left`: stream → messages still in the broker. `references`: the bytes of the run without faults, as
    SHA-256 by image. `repeatable_front_ends`: the front ends whose jobs repeat these bytes. A real engine repeats them
    where the batch is pinned; Discord has no such option. `redrawn`: a sample of the finished jobs that were steered.
    """

    accepted: tuple[Accepted, ...] = ()
    jobs: tuple[JobRow, ...] = ()
    moves: tuple[Move, ...] = ()
    places: tuple[PlaceRow, ...] = ()
    accounts: tuple[Account, ...] = ()
    api: Mapping[str, ApiJob] = field(default_factory=dict)
    posted_counts: Mapping[str, int] = field(default_factory=dict)
    messages_left: Mapping[str, int] = field(default_factory=dict)
    references: Mapping[JobSpec, tuple[str, ...]] = field(default_factory=dict)
    repeatable_front_ends: tuple[str, ...] = ("web", "discord")
    setbacks: tuple[Setback, ...] = ()
    asked_amendments: tuple[AskedAmendment, ...] = ()
    told_amendments: tuple[ToldAmendment, ...] = ()
    amendments: tuple[AmendmentRow, ...] = ()
    redrawn: Mapping[str, RedrawnJob] = field(default_factory=dict)
