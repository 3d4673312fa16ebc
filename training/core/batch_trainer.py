"""Base of the trainers: a learner and a number of steps, which are the whole position of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from torch import Tensor


class SavesState(Protocol):
    """A learner whose state can be saved and restored."""

    @property
    def rate(self) -> float: ...

    def state_tensors(self) -> dict[str, Tensor]: ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...


L = TypeVar("L", bound=SavesState)


class BatchTrainer(Generic[L]):
    """Counts the steps of `learner`, one batch each. `samples` counts pictures seen."""

    def __init__(self, learner: L, batch_size: int) -> None:
        self.learner = learner
        self.batch_size = batch_size
        self.steps: int = 0

    @property
    def samples(self) -> int:
        return self.steps * self.batch_size

    @property
    def rate(self) -> float:
        return self.learner.rate

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on, by name."""
        return self.learner.state_tensors()

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Restore a saved position: the next step repeats exactly. Raises KeyError for a missing tensor."""
        self.learner.restore(tensors)
        self.steps = steps
