"""Frozen dataclasses for the rows that the store reads and writes. Knows the wire contract; does no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

from sqlalchemy import RowMapping

from bot.fair import paths
from bot.states import State
from bot.views import Action, Material, Member, Place
from engine.job import Blame, Enlarge, Job, Recipe, Share, Task, decode, encode, rows

RELAXED = "relaxed"  # the tier whose jobs cost no quota
NOT_BEGUN: Mapping[str, object] = MappingProxyType({
    "billed": 0.0, "attempt": 1, "barren": 0, "step": 0, "epoch": 0, "worker": "", "cancelling": False, "reason": "",
    "blame": "",
})  # fmt: skip


@dataclass(frozen=True)
class Draft:
    """A job that is not admitted yet. `cost` in device-seconds, `created` and `deadline` in seconds since 1970.

    `running_here`, `running_everywhere`: the most jobs that the member may run at once in the guild, and in all guilds.
    """

    id: str
    action: Action
    prompt: str
    notes: tuple[str, ...]
    task: Task
    member: Member
    place: Place
    pool: str
    model: str
    cost: float
    created: float
    deadline: float
    weight: float = 1.0
    parent: tuple[str, int] | None = None
    private: bool = False
    check: bool = False
    running_here: int | None = None
    running_everywhere: int | None = None
    material: tuple[Material, ...] = ()

    @property
    def share(self) -> Share:
        """The key under which the job is charged."""
        return Share(tier=self.member.tier, guild=self.member.guild, user=self.member.id, weight=self.weight)

    def job(self) -> Job:
        """Return the wire value of the first attempt."""
        return Job(
            id=self.id, task=self.task, share=self.share, cost=self.cost, pool=self.pool, deadline=self.deadline,
            check=self.check,
        )  # fmt: skip

    def values(self, key: str | None, ordinal: int) -> dict[str, object]:
        """Return the new row of the table `jobs`."""
        recipe = self.task if isinstance(self.task, Recipe) else None
        return {
            "id": self.id,
            "key": key,
            "ordinal": ordinal,
            "state": "queued",
            "action": self.action,
            "parent": self.parent[0] if self.parent else None,
            "parent_index": self.parent[1] if self.parent else None,
            "prompt": self.prompt,
            "notes": list(self.notes),
            "task": encode(self.task),
            "member": self.member.id,
            "member_name": self.member.name,
            "guild": self.member.guild,
            "channel": self.member.channel,
            "private": self.private,
            "check": self.check,
            "running_here": self.running_here,
            "running_everywhere": self.running_everywhere,
            "tier": self.member.tier,
            "weight": self.weight,
            "pool": self.pool,
            "model": self.model,
            "account": paths(self.pool, self.share)[-1],
            "rows": rows(recipe) if recipe else 1,
            "cost": self.cost,
            "charged": 0.0 if self.member.tier == RELAXED else self.cost,
            "created": self.created,
            "deadline": self.deadline,
            **NOT_BEGUN,
        }

    def brought(self) -> list[dict[str, object]]:
        """Return the rows of the table `pictures` for the inputs, numbered from 0 within each kind."""
        seen: Counter[str] = Counter()
        rows: list[dict[str, object]] = []
        for one in self.material:
            rows.append(
                {
                    "job": self.id, "image": seen[one.kind], "kind": one.kind, "sha256": one.sha256,
                    "bytes": one.bytes, "width": one.width, "height": one.height,
                }
            )  # fmt: skip
            seen[one.kind] += 1
        return rows


@dataclass(frozen=True)
class Record:
    """A job's row. `bot.store.tables` explains the columns."""

    id: str
    key: str | None
    ordinal: int
    state: State
    action: Action
    parent: tuple[str, int] | None
    prompt: str
    notes: tuple[str, ...]
    task: Task
    member: str
    member_name: str
    guild: str
    tier: str
    weight: float
    pool: str
    model: str
    account: str
    rows: int
    cost: float
    charged: float
    billed: float
    attempt: int
    barren: int
    step: int
    epoch: int
    worker: str
    cancelling: bool
    created: float
    deadline: float
    sent: float | None
    started: float | None
    ended: float | None
    seconds: float | None
    ms_per_step: float | None
    reason: str
    blame: Blame | None
    channel: str = ""
    private: bool = False
    check: bool = False
    deleted: float | None = None
    running_here: int | None = None
    running_everywhere: int | None = None

    @property
    def steps(self) -> int:
        """The sampler steps of the whole job; an upscale counts as one."""
        return self.task.steps if isinstance(self.task, Recipe) else 1

    @property
    def images(self) -> int:
        """The number of pictures that the job makes."""
        return self.task.count if isinstance(self.task, Recipe) else 1

    def missing(self, kept: Iterable[Stored]) -> list[str]:
        """Return the expected results that are not among `kept`, as `image 0` or `ladder 0`."""
        here = {(one.kind, one.image) for one in kept}
        kinds = ["image", "ladder"] if isinstance(self.task, Recipe) and self.job().ladder else ["image"]
        asked = [(kind, image) for kind in kinds for image in range(self.images)]
        return [f"{kind} {image}" for kind, image in asked if (kind, image) not in here]

    def job(self) -> Job:
        """Return the wire value of this attempt."""
        share = Share(tier=self.tier, guild=self.guild, user=self.member, weight=self.weight)
        return Job(
            id=self.id,
            task=self.task,
            share=share,
            cost=self.cost,
            pool=self.pool,
            attempt=self.attempt,
            deadline=self.deadline,
            check=self.check,
        )


@dataclass(frozen=True)
class Stored:
    """One picture or ladder of a job, named by the SHA-256 of its content."""

    job: str
    image: int
    kind: str
    sha256: str
    bytes: int
    width: int
    height: int
    verdict: str = "unchecked"
    reviewed: str = ""


@dataclass(frozen=True)
class Entry:
    """One audit line: a transition of a job, with its time and reason."""

    job: str
    at: float
    source: str
    target: str
    attempt: int
    epoch: int
    why: str


@dataclass(frozen=True)
class Moved:
    """A transition that happened: the record after it and the state before it."""

    record: Record
    source: State


def record(row: RowMapping) -> Record:
    """Convert a row of the table `jobs`. Raises `Malformed` if its task does not match the wire contract."""
    values: dict[str, Any] = {str(name): value for name, value in row.items()}
    parent, index = values.pop("parent"), values.pop("parent_index")
    values["parent"] = None if parent is None else (cast(str, parent), cast(int, index))
    values["notes"] = tuple(values["notes"])
    values["task"] = decode(values["task"], cast("type[Task]", Recipe | Enlarge))
    values["blame"] = values["blame"] or None
    return Record(**values)
