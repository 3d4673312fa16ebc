"""Frozen dataclasses for the rows that the store reads and writes, and how rows become records."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

from sqlalchemy import Connection, RowMapping, Select

from bot.domain.dto import Destination, JobAction, Member, StoredInput
from bot.domain.job_states import JobState
from bot.policy.fair_queue import account_paths
from engine.contract import (
    Amendment,
    BillingKey,
    Blame,
    Job,
    MalformedMessage,
    Recipe,
    Task,
    UpscaleTask,
    count_rows,
    decode,
    encode,
    find_done_share,
    list_final_images,
)

log = logging.getLogger(__name__)

RELAXED_TIER = "relaxed"  # the tier whose jobs cost no quota
COPIED_FIELDS = ("id", "action", "prompt", "private", "check", "weight", "pool", "model", "cost", "created", "deadline")


@dataclass(frozen=True)
class NewJob:
    """A job that is not admitted yet. `cost` in device-seconds, `created` and `deadline` in seconds since 1970.

    Admission sets these times. `model`: what its worker must offer; empty for an upscale, which any worker runs.
    `relaxed`: the member asked for that speed by a flag.

    `running_here`, `running_everywhere`: the most jobs that the member may run at once in the guild, and in all guilds.
    """

    id: str
    action: JobAction
    prompt: str
    notes: tuple[str, ...]
    task: Task
    member: Member
    destination: Destination
    pool: str
    model: str
    cost: float
    created: float = 0.0
    deadline: float = 0.0
    weight: float = 1.0
    parent: tuple[str, int] | None = None
    private: bool = False
    check: bool = False
    running_here: int | None = None
    running_everywhere: int | None = None
    inputs: tuple[StoredInput, ...] = ()
    relaxed: bool = False

    @property
    def billing_key(self) -> BillingKey:
        """The key under which the job is charged."""
        return BillingKey(tier=self.member.tier, guild=self.member.guild, user=self.member.id, weight=self.weight)

    def to_job(self) -> Job:
        """Return the wire value of the first attempt."""
        return Job(
            id=self.id,
            task=self.task,
            billing_key=self.billing_key,
            cost=self.cost,
            pool=self.pool,
            deadline=self.deadline,
            check=self.check,
        )

    def to_row(self, key: str | None, ordinal: int) -> dict[str, object]:
        """Return the new row of the table `jobs`."""
        parent, parent_index = self.parent or (None, None)
        return {
            **{name: getattr(self, name) for name in COPIED_FIELDS},
            "key": key,
            "ordinal": ordinal,
            "state": "queued",
            "parent": parent,
            "parent_index": parent_index,
            "notes": list(self.notes),
            "task": encode(self.task),
            "member": self.member.id,
            "member_name": self.member.name,
            "guild": self.member.guild,
            "channel": self.member.channel,
            "thread": self.member.thread,
            "running_here": self.running_here,
            "running_everywhere": self.running_everywhere,
            "tier": self.member.tier,
            "account": account_paths(self.pool, self.billing_key)[-1],
            "rows": count_rows(self.task) if isinstance(self.task, Recipe) else 1,
            "charged": 0.0 if self.member.tier == RELAXED_TIER else self.cost,
        }

    def input_rows(self) -> list[dict[str, object]]:
        """Return the rows of the table `pictures` for the inputs, numbered from 0 within each kind."""
        next_index = defaultdict[str, Iterator[int]](count)
        return [
            {
                "job": self.id,
                "image": next(next_index[stored_input.kind]),
                **{name: getattr(stored_input, name) for name in ("kind", "sha256", "bytes", "width", "height")},
            }
            for stored_input in self.inputs
        ]


@dataclass(frozen=True)
class JobRecord:
    """A job's row. `bot.store.schema.tables` explains the columns."""

    id: str
    key: str | None
    ordinal: int
    state: JobState
    action: JobAction
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
    attempts_without_progress: int
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
    thread: str = ""
    private: bool = False
    check: bool = False
    deleted: float | None = None
    running_here: int | None = None
    running_everywhere: int | None = None

    @property
    def steps(self) -> int:
        """The sampler steps of the whole job; an upscale counts as one."""
        return self.task.steps if isinstance(self.task, Recipe) else 1

    def find_done_share(self, step: int) -> float:
        """Return the share of its price that its steps up to `step` are worth."""
        return find_done_share(self.task, step) if isinstance(self.task, Recipe) else min(1.0, step)

    @property
    def author(self) -> Member:
        """Who asked for it, in its place. Nobody knows the roles of one who does not act now."""
        return Member(self.member, self.member_name, self.guild, channel=self.channel, thread=self.thread)

    @property
    def final_images(self) -> tuple[int, ...]:
        """The images of which it makes pictures, as far as they are known: a change may drop some, or add others."""
        return list_final_images(self.task) if isinstance(self.task, Recipe) else (0,)

    @property
    def image_count(self) -> int:
        """The number of pictures that the job makes."""
        return len(self.final_images)

    def find_missing(self, pictures: Iterable[StoredPicture]) -> list[str]:
        """Return the expected results that are not among `pictures`, as `image 0` or `ladder 0`."""
        present = {(picture.kind, picture.image) for picture in pictures}
        kinds = ["image", "ladder"] if isinstance(self.task, Recipe) and self.to_job().ladder else ["image"]
        expected = [(kind, image) for kind in kinds for image in self.final_images]
        return [f"{kind} {image}" for kind, image in expected if (kind, image) not in present]

    def find_lost_changes(self, held: Iterable[Amendment]) -> list[str]:
        """Return the changes of the recipe that a result does not hold, as `change 1`.

        A broker that has lost its store can bring a job as it had been before them, by a repeated message.
        """
        numbers = {amendment.number for amendment in held}
        own = self.task.amendments if isinstance(self.task, Recipe) else ()
        return [f"change {each.number}" for each in own if each.number not in numbers]

    def to_job(self) -> Job:
        """Return the wire value of this attempt."""
        billing_key = BillingKey(tier=self.tier, guild=self.guild, user=self.member, weight=self.weight)
        return Job(
            id=self.id,
            task=self.task,
            billing_key=billing_key,
            cost=self.cost,
            pool=self.pool,
            attempt=self.attempt,
            deadline=self.deadline,
            check=self.check,
        )


@dataclass(frozen=True)
class StoredPicture:
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
class AuditEntry:
    """One audit line: a transition of a job, with its reason. `created_at`: seconds since 1970."""

    job: str
    created_at: float
    source: str
    target: str
    attempt: int
    epoch: int
    reason: str


@dataclass(frozen=True)
class Transition:
    """A transition that happened: the record after it and the state before it."""

    record: JobRecord
    old_state: JobState


def decode_record(row: RowMapping) -> JobRecord:
    """Convert a row of the table `jobs`. Raises `MalformedMessage` if its task does not match the wire contract."""
    values: dict[str, Any] = {str(name): value for name, value in row.items()}
    parent = values.pop("parent")
    index = values.pop("parent_index")
    values["parent"] = None if parent is None else (cast(str, parent), cast(int, index))
    values["notes"] = tuple(values["notes"])
    values["task"] = decode(values["task"], cast("type[Task]", Recipe | UpscaleTask))
    values["blame"] = values["blame"] or None
    values["attempts_without_progress"] = values.pop("barren")
    return JobRecord(**values)


def decode_audit_entry(row: RowMapping) -> AuditEntry:
    """Convert a row of the audit."""
    return AuditEntry(*(row[name] for name in ("job", "at", "source", "target", "attempt", "epoch", "why")))


def load_records(
    connection: Connection, query: Select[*tuple[Any, ...]], params: Mapping[str, object] | None = None
) -> list[JobRecord]:
    """Return rows of `jobs` as records. A corrupt row is skipped and logged: it must not block the others."""
    loaded: list[JobRecord] = []
    for row in connection.execute(query, params or {}).mappings():
        try:
            loaded.append(decode_record(row))
        except (MalformedMessage, TypeError) as error:
            log.error("job %s: its row cannot be read: %s", row["id"], error)
    return loaded
