"""Job requests: what a member asks for, before it has an id. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from bot.models import Profile
from bot.prompt.loras import Addition, matched
from bot.prompt.possible import check_possible
from bot.refused import Refused
from bot.sentences import priced
from bot.store import Draft
from bot.views import Action, Material, Member
from engine.job import Job, Malformed, Recipe, Task, decode, encode


@dataclass(frozen=True)
class Order:
    """One requested job. `cost` in device-seconds. `relaxed`: the member asked for that speed by its flag."""

    action: Action
    prompt: str
    notes: tuple[str, ...]
    task: Task
    pool: str
    cost: float
    parent: tuple[str, int] | None = None
    relaxed: bool = False
    material: tuple[Material, ...] = ()

    @property
    def model(self) -> str:
        """The model that its worker must offer; empty for an upscale, which any worker runs."""
        return self.task.model if isinstance(self.task, Recipe) else ""


def totalled(orders: Sequence[Order]) -> list[Order]:
    """Put the total cost of several requests first in the first one's notes."""
    if len(orders) < 2:
        return list(orders)
    said = priced(len(orders), sum(order.cost for order in orders))
    return [replace(orders[0], notes=(said, *orders[0].notes)), *orders[1:]]


def renewed(made: Recipe, profile: Profile) -> tuple[Recipe, tuple[str, ...]]:
    """Update an old recipe to the current weights of its model and LoRAs; with notes if they changed.

    Raises `Refused` if the model no longer accepts the recipe.
    """
    warm = profile.warm
    loras = matched((Addition(one.name, one.weight) for one in made.loras), warm)
    now = msgspec.structs.replace(
        made, revision=warm.revision or made.revision, dtype=warm.dtype, guides=warm.guides, loras=loras
    )
    check_possible(now, warm)
    return now, tuple(_newer(made, now))


def _newer(made: Recipe, now: Recipe) -> Iterator[str]:
    if made.revision and now.revision != made.revision:
        yield f"Made with a newer version of {now.model}: it will differ."
    revisions = {one.name: one.revision for one in made.loras}
    for lora in now.loras:
        if revisions.get(lora.name) and lora.revision != revisions[lora.name]:
            yield f"Made with another version of the LoRA {lora.name}: it will differ."


def assumed(profile: Profile, anyone: bool) -> str:
    """Return the note on a model that no live worker offers. `anyone`: whether a worker is online at all."""
    why = "No worker has this model ready" if anyone else "No worker is online"
    return (
        f"{why}: this uses the last known settings of {profile.warm.name}: {profile.warm.dtype}, "
        f"and {profile.warm.steps} steps unless you say otherwise."
    )


def check_fits(draft: Draft) -> None:
    """Check that workers would accept the job. Raises `Refused` (400) now, instead of a dead letter later."""
    try:
        decode(encode(draft.job()), Job)
    except Malformed as error:
        raise Refused(f"No worker would accept this job: {error}.", 400) from error


def scoped(key: str | None, member: Member) -> str | None:
    """Bind an idempotency key of any length to its member, so that nobody gets another's job by guessing."""
    return None if key is None else hashlib.sha256(f"{member.id}\0{key}".encode()).hexdigest()
