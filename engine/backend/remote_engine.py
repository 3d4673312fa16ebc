"""The engine of a backend worker: none is here. A run's own tasks wait for the backend; ending them ends its work."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from engine.contract import AmendmentRequest, Recipe, Snapshot
from engine.contract.rejection import JobRejected
from engine.worker.job_engine import JobEngine

T = TypeVar("T")


class RemoteEngine:
    """A `JobEngine` that has nothing to change: pauses and weights are no words of a backend's API."""

    async def call(self, action: Callable[[JobEngine], T]) -> T:
        return action(self)

    def cancel(self, job: str) -> int:
        return 0  # a run counts its steps itself

    def watch(self, job: str, is_watched: bool = True) -> None:
        """A run looks whether it is watched when a preview arrives."""

    def pause(self, job: str) -> None:
        """A backend draws on."""

    def resume(self, job: str) -> None:
        """A backend drew on."""

    def set_job_pace(self, job: str, seconds: float) -> None:
        """A backend draws as fast as it can."""

    def set_job_weight(self, job: str, weight: float) -> None:
        """A backend has no shares."""

    def amend(self, job: str, request: AmendmentRequest) -> Recipe:
        """Refuse every change: the server runs a picture as one call."""
        raise JobRejected("This picture is drawn by another server, which cannot be steered.", "member")

    def take_snapshots(self, job: str, epoch: int) -> list[Snapshot]:
        """Return none: a picture that moves to another worker starts over."""
        return []
