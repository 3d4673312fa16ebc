"""Jobs as plain values, for the JSON of `darkroom jobs`.

Interaction tokens, which allow writing in Discord, are never among them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from bot.cli.jobs_store import Whole
from bot.store import Record
from bot.views import Delivery
from engine.job import Recipe

SHOWN = ("guild", "channel", "message")  # the parts of a destination that are shown


def plain(one: Record) -> dict[str, Any]:
    """Return a job's row as plain values, without its recipe."""
    names = (
        "id", "state", "cancelling", "action", "guild", "channel", "member", "member_name", "tier", "pool", "model",
        "rows", "attempt", "barren", "step", "steps", "images", "worker", "epoch", "cost", "charged", "created",
        "deadline", "sent", "started", "ended", "seconds", "ms_per_step", "reason", "blame", "private", "check",
        "deleted", "prompt",
    )  # fmt: skip
    found = {name: getattr(one, name) for name in names}
    parent = None if one.parent is None else {"id": one.parent[0], "picture": one.parent[1] + 1}
    return {**found, "parent": parent, "notes": list(one.notes)}


def everything(whole: Whole) -> dict[str, Any]:
    """Return the row with recipe, states, destinations and pictures."""
    kind = "recipe" if isinstance(whole.record.task, Recipe) else "enlarge"
    return {
        **plain(whole.record),
        kind: msgspec.to_builtins(whole.record.task),
        "states": [{name: value for name, value in vars(one).items() if name != "job"} for one in whole.history],
        "places": [_place(one) for one in whole.deliveries],
        "pictures": [{name: value for name, value in vars(one).items() if name != "job"} for one in whole.pictures],
    }


def _place(one: Delivery) -> dict[str, Any]:
    where = {name: one.place.where[name] for name in SHOWN if one.place.where.get(name)}
    said = {"role": one.role, "kind": one.place.kind, "delivered": one.delivered, "reason": one.reason}
    return {**where, **({"message": one.message} if one.message else {}), **said}
