"""What an experiment works with: a model, its plan, a seed; and what it hands back. Knows no files and no terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from PIL import Image

from engine.families.family import Worded
from engine.job import MAX_STEPS
from engine.plan import Plan, plan
from engine.sampling import Drawing, Seen, develop, drawing_of, initial
from engine.unfit import Unfit


@dataclass(frozen=True)
class Shown:
    """An experiment's sheet, what is seen on it in one sentence, its figures, and frames where something moves."""

    name: str
    sheet: Image.Image
    sentence: str
    figures: Mapping[str, object] = field(default_factory=dict)
    frames: Sequence[Image.Image] = ()


def table(family: Worded, steps: int) -> Plan:
    """The DDIM plan of this model's schedule: a step needs only the latents before it, so one can begin anywhere.

    Raises `Unfit`.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise Unfit(f"--steps may be 1 to {MAX_STEPS}; {steps} is not.", "member")
    try:
        return plan(family.scheduler_config, "ddim", steps)
    except ValueError as error:
        raise Unfit(str(error), "model") from error


@dataclass(frozen=True)
class Room:
    """`guidance` is how closely texts are followed, `seed` where the noise comes from, `seen` hears of every step."""

    family: Worded
    steps: int
    guidance: float
    seed: int
    seen: Seen = lambda done, of: None

    @property
    def plan(self) -> Plan:
        return table(self.family, self.steps)

    def noise(self, number: int = 0) -> torch.Tensor:
        return initial(self.family, self.seed + number)

    def told(self, text: torch.Tensor, start: torch.Tensor) -> Drawing:
        return drawing_of(self.family, text, self.guidance, start)

    def develop(self, drawings: Sequence[Drawing], first: int = 0) -> list[Image.Image]:
        """The finished pictures, as the model's own finals are."""
        return [self.family.finish(latents) for latents in develop(self.family, self.plan, drawings, first, self.seen)]

    def unguided(self) -> Room:
        """The same without guidance: where no words are given, there is nothing to steer by."""
        return replace(self, guidance=1.0)
