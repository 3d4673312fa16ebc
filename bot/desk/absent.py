"""The error for a job that no longer exists. Each removed job leaves the reason why, kept for about a year."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bot.refused import UserError
from bot.sentences import PICTURES_DELETED
from bot.store import Store, keeping
from bot.store.keeping import DeletionReason

UNKNOWN_JOB = "There is no such job."
REMOVAL_SENTENCES: Mapping[DeletionReason, str] = MappingProxyType(
    {
        "age": "It is not kept any more: this bot keeps pictures for a limited time.",
        "room": "It is not kept any more: the oldest pictures here make room for new ones.",
        "forgotten": "It is gone for good: its author had everything removed.",
        "enlarged": PICTURES_DELETED,
    }
)


async def missing_job_error(store: Store, job: str, *, is_deleted: bool = False) -> UserError:
    """Return the error to raise for a job without a row, or whose row says that its pictures were `deleted`."""
    cause = await store.read(keeping.read_deletion_reason, job)
    if cause is not None:
        return UserError(REMOVAL_SENTENCES[cause], 404 if cause == "enlarged" else 410)
    return UserError(PICTURES_DELETED if is_deleted else UNKNOWN_JOB, 404)
