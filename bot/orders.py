"""What somebody asks for, before it has an id: its task, its price, and what a member is told of it. Does no I/O."""

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
    """One job that somebody asks for. `cost` in device-seconds. `relaxed`: they asked for that speed by its flag."""

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
        """The model that its worker must have ready; any worker enlarges."""
        return self.task.model if isinstance(self.task, Recipe) else ""


def totalled(orders: Sequence[Order]) -> list[Order]:
    """Several at once: the first one's notes begin with what they cost together."""
    if len(orders) < 2:
        return list(orders)
    said = priced(len(orders), sum(order.cost for order in orders))
    return [replace(orders[0], notes=(said, *orders[0].notes)), *orders[1:]]


def renewed(made: Recipe, profile: Profile) -> tuple[Recipe, tuple[str, ...]]:
    """An old recipe for the weights that its model and its LoRAs have now, and notes if they are other ones.

    Raises `Refused` for what the model takes no longer.
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
    """For a model that no live worker has ready. `anyone`: whether a worker is online at all."""
    why = "No worker has this model ready" if anyone else "No worker is online"
    return (
        f"{why}: {profile.warm.name} is taken as it was last known, in {profile.warm.dtype}, "
        f"and with {profile.warm.steps} steps where you say none."
    )


def check_fits(draft: Draft) -> None:
    """Raises `Refused` (400) for what no worker would accept: better said now than found in the dead letters."""
    try:
        decode(encode(draft.job()), Job)
    except Malformed as error:
        raise Refused(f"This cannot be handed to a worker: {error}.", 400) from error


def scoped(key: str | None, member: Member) -> str | None:
    """A front end's key belongs to its member: nobody gets another's ticket by guessing. Any length fits."""
    return None if key is None else hashlib.sha256(f"{member.id}\0{key}".encode()).hexdigest()
