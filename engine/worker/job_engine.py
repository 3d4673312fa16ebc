"""What a worker needs of the engine that draws its runs, whether it computes here or asks another server. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from engine.contract import AmendmentRequest, Recipe, Snapshot

T = TypeVar("T")


class JobEngine(Protocol):
    """Draws the images of jobs. Jobs that it does not know are ignored."""

    def cancel(self, job: str) -> int:
        """Remove the job. Return the number of executed steps, for the charge."""
        ...

    def watch(self, job: str, is_watched: bool = True) -> None:
        """Show the job's previews, or no longer."""
        ...

    def pause(self, job: str) -> None:
        """Run no further step of the job until `resume`."""
        ...

    def resume(self, job: str) -> None: ...

    def set_job_pace(self, job: str, seconds: float) -> None:
        """Let the steps of the job begin at least so many seconds apart; 0: as soon as they can."""
        ...

    def set_job_weight(self, job: str, weight: float) -> None:
        """Let the job have `weight` times the share of its user's jobs of weight 1."""
        ...

    def amend(self, job: str, request: AmendmentRequest) -> Recipe:
        """Change the job from the next step on, and return its amended recipe.

        Raises `JobRejected` with a sentence, and KeyError if the job is not here.
        """
        ...

    def take_snapshots(self, job: str, epoch: int) -> list[Snapshot]:
        """Return a snapshot of each unfinished image that another worker can continue."""
        ...


class EngineCaller(Protocol):
    """Runs calls where nothing else touches the engine."""

    async def call(self, action: Callable[[JobEngine], T]) -> T:
        """Run `action` between two steps and return its result, or raise its error."""
        ...
