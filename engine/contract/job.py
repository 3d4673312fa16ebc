"""The job that the bot sends to a worker: a task, its owner and its cost."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from engine.contract.fields import AccountName, Id, Name, Seconds, Sha256, UnixSeconds, UpscaleMethod, VersionedValue
from engine.contract.recipe import Recipe


class UpscaleTask(VersionedValue, frozen=True, kw_only=True):
    """Upscale one finished picture, named by its SHA-256 in the blob bucket.

    A worker without a super-resolver uses Lanczos where "gan" is requested; its `PictureReady` says which one it
    used.
    """

    source: Sha256
    factor: Annotated[int, Meta(ge=2, le=8)] = 4
    method: UpscaleMethod = "lanczos"


Task = Recipe | UpscaleTask


def required_blobs(task: Task) -> tuple[str, ...]:
    """Return the SHA-256 of each blob that a worker needs for the task."""
    return (task.source,) if isinstance(task, UpscaleTask) else task.required_blobs


class BillingKey(Struct, frozen=True, forbid_unknown_fields=True):
    """Who a job's cost is charged to. The same four fields decide the fair order in the queue and in the batch."""

    tier: AccountName
    guild: AccountName
    user: AccountName
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0


class Job(VersionedValue, frozen=True, kw_only=True):
    """A task with an id and an owner. `cost` is in calibrated device-seconds, `deadline` in seconds since 1970.

    `check`: a worker with a picture check classifies the finished pictures, and previews once they show enough.
    """

    id: Id
    task: Task
    billing_key: BillingKey
    cost: Seconds
    pool: Name = "default"
    attempt: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    deadline: UnixSeconds
    ladder: bool = True
    check: bool = False
