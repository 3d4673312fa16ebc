"""The error for a job that no longer exists. Each removed job leaves the reason why, kept for about a year."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bot.refused import Refused
from bot.sentences import DELETED
from bot.store import Store, keeping
from bot.store.keeping import Why

UNKNOWN = "There is no such job."
GONE: Mapping[Why, str] = MappingProxyType(
    {
        "age": "It is not kept any more: this bot keeps pictures for a limited time.",
        "room": "It is not kept any more: the oldest pictures here make room for new ones.",
        "forgotten": "It is gone for good: its author had everything removed.",
        "enlarged": DELETED,
    }
)


async def absent(store: Store, job: str, *, deleted: bool = False) -> Refused:
    """Return the error to raise for a job without a row, or whose row says that its pictures were `deleted`."""
    why = await store.ask(keeping.why_gone, job)
    if why is not None:
        return Refused(GONE[why], 404 if why == "enlarged" else 410)
    return Refused(DELETED if deleted else UNKNOWN, 404)
