"""Values that services and front ends exchange: members, destinations, accepted jobs, job views. Frozen, no logic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from bot.domain.job_states import JobState
from bot.domain.permission import KeyScope
from engine.contract import Recipe, UpscaleTask

JobAction = Literal[
    "imagine",
    "vary",
    "reroll",
    "upscale",
    "remix",
    "reproduce",
    "finish",
    "blend",
    "edit",
    "zoom",
    "pan",
    "branch",
    "walk",
]
DestinationKind = Literal["discord", "web", "terminal"]
DeliveryRole = Literal["answer", "notice", "direct", "film"]


def can_see_everything(channel: str) -> bool:
    """Allow every channel: for front ends whose channels cannot be closed to a member."""
    return True


@dataclass(frozen=True)
class Member:
    """The member who acts, and where. `id` is unique over all front ends; `tier` sets the weight in the fair order.

    `is_moderator`, `is_admin` (may manage the server), `is_owner` (of the server) and `is_operator` (of the bot) decide
    the role (`bot.policy.permissions`). `roles`: the member's Discord roles there. `channel`: where they act (a thread
    counts as its parent). `thread`: the private thread where they act, else empty. `age_restricted`: the channel is for
    adults; there no picture is checked, while the word filter still holds. `can_see`: whether they can see a channel of
    their guild, by its id. `scopes`: of the API key that acts as this member; None: no key does, nothing is restricted.
    """

    id: str
    name: str
    guild: str
    tier: str = "standard"
    is_moderator: bool = False
    is_admin: bool = False
    is_owner: bool = False
    is_operator: bool = False
    roles: tuple[str, ...] = ()
    channel: str = ""
    thread: str = ""
    age_restricted: bool = False
    scopes: frozenset[KeyScope] | None = None
    can_see: Callable[[str], bool] = field(default=can_see_everything, compare=False, repr=False)

    def can_see_place(self, channel: str, thread: str) -> bool:
        """Return whether they can see a channel of their guild, and the private thread in it (empty for none).

        Discord tells the bot no members of a thread: who acts inside is one, and nobody sees it from outside.
        """
        return thread in ("", self.thread) and self.can_see(channel)


@dataclass(frozen=True)
class Destination:
    """Where a job is shown; the front end defines `address` (Discord: guild, channel, message, token, …)."""

    kind: DestinationKind
    address: dict[str, str] = field(default_factory=dict)


InputKind = Literal["input", "mask", "branch", "control", "reference"]


@dataclass(frozen=True)
class StoredInput:
    """A file that a job begins with or follows, named by its SHA-256: kept and deleted with the job's pictures.

    `weight`: a picture's share of a blend. A ladder has the size of its picture.
    """

    kind: InputKind
    sha256: str
    bytes: int
    width: int
    height: int
    weight: float = 1.0


@dataclass(frozen=True)
class Delivery:
    """One destination of a job.

    `role`: the `answer` to its request, a `notice` of its end, a `direct` message to its author, or a message with its
    `film`, of which there may be many. `delivered_at`: when the final state was shown there, or given up for `reason`,
    a sentence for the member. With a reason and no `delivered_at`, the destination is gone while the job goes on.
    `message`: empty until known.
    """

    role: DeliveryRole
    destination: Destination
    message: str = ""
    delivered_at: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class AcceptedJob:
    """An accepted job. `jobs_ahead`: jobs that start before it; `eta`: seconds until it is done, None if unknown.

    `has_worker`: False while no live worker can run it. `startup_notice`: a sentence about a worker that is
    starting up, if there is one. `evaluations`: at how many of its steps the network is evaluated. `cost` in
    calibrated device-seconds.
    """

    job: str
    jobs_ahead: int
    eta: float | None
    has_worker: bool
    notes: tuple[str, ...]
    prompt: str
    steps: int
    evaluations: int
    sampler: str
    seed: int
    count: int
    cost: float
    is_private: bool = False  # only its author may see it
    startup_notice: str = ""


@dataclass(frozen=True)
class PictureRef:
    """One finished image of a job; its PNG comes from `Gallery.read_picture`.

    `verdict`: the picture check's; `reviewed`: a moderator's decision: "shown", "hidden" or empty.
    """

    index: int
    sha256: str
    width: int
    height: int
    verdict: str = "unchecked"
    reviewed: str = ""


@dataclass(frozen=True)
class JobView:
    """A job as a member may see it.

    Times are seconds since 1970. `jobs_ahead`: None unless it waits; `eta`: seconds until it is done, None if over or
    unknown. `startup_notice`: a sentence about a worker that is starting up, while no `has_worker` can run the job.
    `step` of `total_steps`: the newest step known (workers send frames only while somebody watches). `ladder_images`:
    the images that have a ladder (film and slider). `parent_image`: the job and image index it was made from.
    `is_private`: only its author may see it. `needs_check`: its pictures must pass the picture check before they are
    shown. `deleted_at`: when its pictures were deleted. `channel`: where it was requested; `thread`: the private thread
    of that channel, else empty. `ends_interpolation`: it was the last job of an interpolation to finish, so the film is
    shown with it.
    """

    id: str
    state: JobState
    prompt: str
    task: Recipe | UpscaleTask
    member_id: str
    member_name: str
    guild: str
    created: float
    started: float | None
    finished: float | None
    seconds: float | None
    ms_per_step: float | None
    jobs_ahead: int | None
    eta: float | None
    reason: str
    step: int
    total_steps: int
    pictures: tuple[PictureRef, ...]
    ladder_images: tuple[int, ...]
    parent_image: tuple[str, int] | None
    action: JobAction
    notes: tuple[str, ...] = ()
    cost: float = 0.0
    is_cancelling: bool = False
    has_worker: bool = True
    startup_notice: str = ""
    wait_reason: str = ""
    is_private: bool = False
    needs_check: bool = False
    deleted_at: float | None = None
    channel: str = ""
    thread: str = ""
    ends_interpolation: bool = False

    @property
    def enlargement(self) -> int:
        """How many times wider and higher its pictures are than the recipe says; 1 while there are none."""
        if not isinstance(self.task, Recipe) or not self.pictures:
            return 1
        return max(1, self.pictures[0].width // self.task.width)

    def is_hidden_from(self, member_id: str) -> bool:
        """Return whether it is another member's, and private or of a private thread: for those who act elsewhere."""
        return (self.is_private or bool(self.thread)) and self.member_id != member_id
