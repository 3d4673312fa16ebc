"""What an experiment uses (model, plan, seed) and its result. Knows no files and no terminal."""

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
    """An experiment's result: contact sheet, a sentence about it, figures, and the frames of a film if it has one."""

    name: str
    sheet: Image.Image
    sentence: str
    figures: Mapping[str, object] = field(default_factory=dict)
    frames: Sequence[Image.Image] = ()


def table(family: Worded, steps: int) -> Plan:
    """Return the DDIM plan of this model: a step needs only the latents before it, so a run can begin at any step.

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
    """A model with the settings of an experiment; `seen` is called after every step."""

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
        """Return the finished pictures, as the model's family finishes them."""
        return [self.family.finish(latents) for latents in develop(self.family, self.plan, drawings, first, self.seen)]

    def unguided(self) -> Room:
        """Return the same without guidance, which needs a prompt."""
        return replace(self, guidance=1.0)
