"""Run: one claimed job, its progress, and its remaining time. No I/O.

Its outcome is decided once: the first caller of `end` (finish, failure, cancel or loss) gets True, the others False.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from engine.bus.claims import Claim
from engine.bus.deliveries import Delivered
from engine.engine import Engine, Stepped
from engine.job import Job, Recipe, Snapshot, rows

SMOOTHING = 0.05  # weight of the newest step in the pace


@dataclass
class Run:
    """All times are on the monotonic clock. `handles`: the messages to acknowledge, by attempt."""

    job: Job
    claim: Claim
    began: float
    handles: dict[int, Delivered[Job]] = field(default_factory=dict)
    done: dict[int, int] = field(default_factory=dict)  # image → steps done
    saved: dict[int, int] = field(default_factory=dict)  # image → steps done, in the last snapshots
    todo: set[int] = field(default_factory=set)  # images whose pictures are not published yet
    fresh: dict[int, Stepped] = field(default_factory=dict)  # image → the step to show next
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    announced: asyncio.Event = field(default_factory=asyncio.Event)  # Started is published
    ended: bool = False
    renewed: float = 0.0  # when its claim was last renewed
    held: str = ""  # the model kept in memory for it
    watched: bool = False
    paused: asyncio.TimerHandle | None = None  # the timer that ends its pause
    rested: float = 0.0  # seconds of its pauses that have ended
    weight: float = 1.0  # relative to other jobs of its member
    pace: float = 0.0  # seconds a step of one image
    stepped: float = 0.0  # when its last step ended, or the engine admitted it
    run_here: int = 0  # steps of single images that this worker ran

    def __post_init__(self) -> None:
        self.todo = set(range(self.count))
        self.done = dict.fromkeys(range(self.count), self.first)

    @property
    def count(self) -> int:
        return self.job.task.count if isinstance(self.job.task, Recipe) else 1

    @property
    def first(self) -> int:
        """The step that it begins with, unless it is resumed."""
        return self.job.task.first if isinstance(self.job.task, Recipe) else 0

    @property
    def last(self) -> int:
        """The step that it ends before."""
        return self.job.task.last if isinstance(self.job.task, Recipe) else 0

    @property
    def rows(self) -> int:
        """Rows of the batch that it occupies."""
        return rows(self.job.task) if isinstance(self.job.task, Recipe) and self.paused is None else 0

    def steer(self, engine: Engine) -> None:
        """Set pause and weight in the engine, between two steps, also for a job that it has yet to admit."""
        (engine.resume if self.paused is None else engine.pause)(self.job.id)
        engine.prioritise(self.job.id, self.weight)

    def resume(self, snapshots: Iterable[Snapshot]) -> int:
        """Record the images' progress from snapshots, and return the least step."""
        for snapshot in snapshots:
            if snapshot.image in self.done:
                self.done[snapshot.image] = self.saved[snapshot.image] = min(snapshot.k, self.last)
        return min(self.done.values(), default=0)

    def step(self, images: Sequence[tuple[int, int]], moment: float) -> None:
        """Record (image, steps done) of each image that has just stepped."""
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
        """Whether it has progressed since its last snapshots."""
        return any(k != self.saved.get(image, self.first) for image, k in self.done.items())

    def end(self) -> bool:
        """Return True to the first caller only, which decides how the run ends."""
        first, self.ended = not self.ended, True
        return first

    def spent(self, steps: int) -> float:
        """Return the cost up to step `steps`, in device-seconds, at the price when it was admitted."""
        whole = self.last - self.first
        return self.job.cost * max(0.0, min(1.0, (steps - self.first) / whole)) if whole > 0 else 0.0
