"""What a front end gives to the studio and gets from it: members, places, tickets, views.

Frozen values only. Knows the wire contract; knows nothing of SQL, NATS, Discord or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from bot.states import State
from engine.job import Enlarge, Recipe

Action = Literal[
    "imagine", "vary", "reroll", "upscale", "remix", "reproduce", "blend", "edit", "zoom", "pan", "branch", "walk"
]
PlaceKind = Literal["discord", "web", "terminal"]
Role = Literal["answer", "notice", "direct", "film"]


def everywhere(channel: str) -> bool:
    """Whether a member may look into a channel, where there are none that could be closed to them."""
    return True


@dataclass(frozen=True)
class Member:
    """Who asks, and where. `id` is unique over all front ends; `tier` decides the weight in the fair order.

    `moderator`, `admin` (may manage the server), `owner` (of the server) and `house` (runs the bot) are standings as
    `bot.access` reads them. `roles` are the member's roles there; `channel` is where they ask (a thread counts as its
    parent), `age_restricted` whether it is for adults: no picture is checked there, while lists of words hold. `sees`:
    whether they may look into a channel of their guild, by its id.
    """

    id: str
    name: str
    guild: str
    tier: str = "standard"
    moderator: bool = False
    admin: bool = False
    owner: bool = False
    house: bool = False
    roles: tuple[str, ...] = ()
    channel: str = ""
    age_restricted: bool = False
    sees: Callable[[str], bool] = field(default=everywhere, compare=False, repr=False)


@dataclass(frozen=True)
class Place:
    """Where a job is shown; `where` belongs to the front end (for Discord: guild, channel, message, token, …)."""

    kind: PlaceKind
    where: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Material:
    """What a job begins with, by its content: kept, exported and deleted with what it makes.

    `weight` is a picture's beside others. A ladder has the size of its picture.
    """

    kind: Literal["input", "mask", "branch"]
    sha256: str
    bytes: int
    width: int
    height: int
    weight: float = 1.0


@dataclass(frozen=True)
class Delivery:
    """One place of a job: the `answer` to its request, a `notice` of its end, a `direct` message to its author, or a
    message with its `film`, of which there may be many.

    `delivered`: when the last word was shown there, or was given up for `reason`, a sentence for the member. With a
    reason and no `delivered` the place is gone while the job goes on. `message` is empty until it is known.
    """

    role: Role
    place: Place
    message: str = ""
    delivered: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Ticket:
    """An accepted job. `ahead`: jobs that start before it; `eta`: seconds until it is done, None if nobody can say.

    `worker` is False while no live worker can run it: say so at once, or the sentence on one that is `starting`.
    `cost` is in calibrated device-seconds.
    """

    job: str
    ahead: int
    eta: float | None
    worker: bool
    notes: tuple[str, ...]
    prompt: str
    steps: int
    sampler: str
    seed: int
    count: int
    cost: float
    private: bool = False  # for its author alone
    starting: str = ""


@dataclass(frozen=True)
class Shot:
    """One finished image of a job; its PNG is `Studio.picture(job, index)`.

    `verdict` is the picture check's, `reviewed` a moderator's: "shown", "hidden" or empty.
    """

    index: int
    sha256: str
    width: int
    height: int
    verdict: str = "unchecked"
    reviewed: str = ""


@dataclass(frozen=True)
class View:
    """A job as a member may see it.

    Times are seconds since 1970. `ahead` is None unless it waits; `eta` is the seconds until it is done, None if
    over or unknown. `starting`: the sentence on a worker that is on its way, while no `worker` can run it. `step` of
    `of` is the newest step seen (live frames only come while somebody watches). `ladders`
    are the images that have a ladder (film and slider). `parent` is the job and the image index it was made from.
    `private` ones are their author's alone; `check`: its pictures pass the picture check before they are shown;
    `deleted`: when its pictures were taken away; `channel`: where it was asked for; `walk`: the last of a walk to be
    finished, so that its film is shown with it.
    """

    id: str
    state: State
    prompt: str
    recipe: Recipe | Enlarge
    member_id: str
    member_name: str
    guild: str
    created: float
    started: float | None
    finished: float | None
    seconds: float | None
    ms_per_step: float | None
    ahead: int | None
    eta: float | None
    reason: str
    step: int
    of: int
    pictures: tuple[Shot, ...]
    ladders: tuple[int, ...]
    parent: tuple[str, int] | None
    action: Action
    notes: tuple[str, ...] = ()
    cost: float = 0.0
    cancelling: bool = False
    worker: bool = True
    starting: str = ""
    why: str = ""
    private: bool = False
    check: bool = False
    deleted: float | None = None
    channel: str = ""
    walk: bool = False

    @property
    def enlargement(self) -> int:
        """How many times as wide and high as their recipe its pictures are; 1 while none is there."""
        if not isinstance(self.recipe, Recipe) or not self.pictures:
            return 1
        return max(1, self.pictures[0].width // self.recipe.width)

    def hidden_from(self, member: str) -> bool:
        """True if it is private, and another member's."""
        return self.private and self.member_id != member
