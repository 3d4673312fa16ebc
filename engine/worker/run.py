"""Run: one job that this worker has claimed, how far it is, and how long it still takes. No I/O.

Its outcome is decided once: whoever calls `end` first (finish, failure, cancel or loss) has it; the others get False.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from engine.bus.claims import Claim
from engine.bus.deliveries import Delivered
from engine.engine import Engine, Stepped
from engine.job import Job, Recipe, Snapshot, rows

SMOOTHING = 0.05  # weight of the newest image-step in the pace


@dataclass
class Run:
    """`began` and every moment are on the monotonic clock. `handles`: the messages to answer for, by attempt."""

    job: Job
    claim: Claim
    began: float
    handles: dict[int, Delivered[Job]] = field(default_factory=dict)
    done: dict[int, int] = field(default_factory=dict)  # image → steps done
    saved: dict[int, int] = field(default_factory=dict)  # the same, as of the last snapshots
    todo: set[int] = field(default_factory=set)  # images whose pictures are not published yet
    fresh: dict[int, Stepped] = field(default_factory=dict)  # image → the step to show next
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    announced: asyncio.Event = field(default_factory=asyncio.Event)  # Started is published
    ended: bool = False
    renewed: float = 0.0  # when its claim was last renewed
    held: str = ""  # the model that stays in memory for it
    watched: bool = False
    paused: asyncio.TimerHandle | None = None  # what ends its pause
    rested: float = 0.0  # seconds of its pauses so far
    weight: float = 1.0  # beside other jobs of its user
    pace: float = 0.0  # seconds an image-step
    stepped: float = 0.0  # when the last step was done, or the engine took it in
    run_here: int = 0  # image-steps that this worker ran

    def __post_init__(self) -> None:
        self.todo = set(range(self.count))
        self.done = dict.fromkeys(range(self.count), self.first)

    @property
    def count(self) -> int:
        return self.job.task.count if isinstance(self.job.task, Recipe) else 1

    @property
    def first(self) -> int:
        """The step that it begins with, where it is not resumed."""
        return self.job.task.first if isinstance(self.job.task, Recipe) else 0

    @property
    def last(self) -> int:
        """The step that it ends before."""
        return self.job.task.last if isinstance(self.job.task, Recipe) else 0

    @property
    def rows(self) -> int:
        """Rows of the batch that it takes up."""
        return rows(self.job.task) if isinstance(self.job.task, Recipe) and self.paused is None else 0

    def steer(self, engine: Engine) -> None:
        """Tells the engine how it stands, between two steps; one that is not there yet is told when it comes."""
        (engine.resume if self.paused is None else engine.pause)(self.job.id)
        engine.prioritise(self.job.id, self.weight)

    def resume(self, snapshots: Iterable[Snapshot]) -> int:
        """Notes where the images go on, and returns the step that is said of the whole: the least of them."""
        for snapshot in snapshots:
            if snapshot.image in self.done:
                self.done[snapshot.image] = self.saved[snapshot.image] = min(snapshot.k, self.last)
        return min(self.done.values(), default=0)

    def step(self, images: Sequence[tuple[int, int]], moment: float) -> None:
        """(image, steps done) of each image that has just stepped."""
        seconds = (moment - self.stepped) / len(images)
        for image, k in images:
            self.done[image] = k
            self.pace = self.pace + SMOOTHING * (seconds - self.pace) if self.pace else seconds
        self.stepped = moment
        self.run_here += len(images)

    @property
    def seconds_left(self) -> float:
        left = sum(self.last - k for k in self.done.values())
        return max(0.0, left * self.pace)

    @property
    def unsaved(self) -> bool:
        """Whether it has got on since its last snapshots."""
        return any(k != self.saved.get(image, self.first) for image, k in self.done.items())

    def end(self) -> bool:
        """True for the one caller who decides how it ends."""
        first, self.ended = not self.ended, True
        return first

    def spent(self, steps: int) -> float:
        """What it cost up to step `steps`, in device-seconds, by the price it was accepted at."""
        whole = self.last - self.first
        return self.job.cost * max(0.0, min(1.0, (steps - self.first) / whole)) if whole > 0 else 0.0
