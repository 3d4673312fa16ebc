"""Jobs as plain values, for the JSON of `darkroom jobs`.

Interaction tokens, which allow writing in Discord, are never among them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from bot.cli.jobs.admin import JobDetails
from bot.domain.dto import Delivery
from bot.store import JobRecord
from bot.store.jobs.records import AuditEntry
from engine.contract import Recipe

DESTINATION_FIELDS = ("guild", "channel", "message")  # the parts of a destination that are shown


def record_to_dict(record: JobRecord) -> dict[str, Any]:
    """Return a job's row as plain values, without its recipe."""
    names = (
        "id",
        "state",
        "cancelling",
        "action",
        "guild",
        "channel",
        "member",
        "member_name",
        "tier",
        "pool",
        "model",
        "rows",
        "attempt",
        "step",
        "steps",
        "worker",
        "epoch",
        "cost",
        "charged",
        "created",
        "deadline",
        "sent",
        "started",
        "ended",
        "seconds",
        "ms_per_step",
        "reason",
        "blame",
        "private",
        "check",
        "deleted",
        "prompt",
    )
    values = {name: getattr(record, name) for name in names}
    parent = None if record.parent is None else {"id": record.parent[0], "picture": record.parent[1] + 1}
    return {
        **values,
        "images": record.image_count,
        "attempts_without_progress": record.attempts_without_progress,
        "parent": parent,
        "notes": list(record.notes),
    }


def details_to_dict(details: JobDetails) -> dict[str, Any]:
    """Return the row with recipe, states, destinations and pictures."""
    kind = "recipe" if isinstance(details.record.task, Recipe) else "upscale"
    return {
        **record_to_dict(details.record),
        kind: msgspec.to_builtins(details.record.task),
        "states": [_audit_entry_to_dict(entry) for entry in details.history],
        "destinations": [_destination_to_dict(item) for item in details.deliveries],
        "pictures": [{name: value for name, value in vars(item).items() if name != "job"} for item in details.pictures],
    }


def _audit_entry_to_dict(entry: AuditEntry) -> dict[str, Any]:
    return {
        "at": entry.created_at,
        "source": entry.source,
        "target": entry.target,
        "attempt": entry.attempt,
        "epoch": entry.epoch,
        "why": entry.reason,
    }


def _destination_to_dict(delivery: Delivery) -> dict[str, Any]:
    location = {
        name: delivery.destination.address[name]
        for name in DESTINATION_FIELDS
        if delivery.destination.address.get(name)
    }
    status = {
        "role": delivery.role,
        "kind": delivery.destination.kind,
        "delivered": delivery.delivered_at,
        "reason": delivery.reason,
    }
    return {**location, **({"message": delivery.message} if delivery.message else {}), **status}
