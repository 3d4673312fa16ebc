"""The model, plan and seed of an experiment, and its result. Independent of files and terminal."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import torch
import typer
from PIL import Image

from engine.contract import MAX_STEPS, JobRejected
from engine.models.family import TokenConditioned
from engine.sampling import Plan, plan
from training.diffusion.latent_sampling import OnStep, SamplingInput, build_input, initial_noise, sample_latents


@dataclass(frozen=True)
class ExperimentResult:
    """An experiment's result: contact sheet, a sentence about it, figures, and the frames of a film if it has one."""

    name: str
    sheet: Image.Image
    summary: str
    figures: Mapping[str, object] = field(default_factory=dict[str, object])
    frames: Sequence[Image.Image] = ()


def make_ddim_plan(family: TokenConditioned, steps: int) -> Plan:
    """Return the DDIM plan of this model: a step needs only the latents before it, so a run can begin at any step.

    Raises `JobRejected`.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise JobRejected(f"--steps may be 1 to {MAX_STEPS}; {steps} is not.", "member")
    try:
        return plan(family.scheduler_config, "ddim", steps)
    except ValueError as error:
        raise JobRejected(str(error), "model") from error


@dataclass(frozen=True)
class LabContext:
    """A model with the settings of an experiment; it calls `on_step` after every step."""

    family: TokenConditioned
    steps: int
    guidance: float
    seed: int
    on_step: OnStep = lambda finished, total: None

    @property
    def plan(self) -> Plan:
        return make_ddim_plan(self.family, self.steps)

    def initial_noise(self, number: int = 0) -> torch.Tensor:
        return initial_noise(self.family, self.seed + number)

    def make_drawing(self, conditioning: torch.Tensor, noise: torch.Tensor) -> SamplingInput:
        return build_input(self.family, conditioning, self.guidance, noise)

    def render_pictures(self, drawings: Sequence[SamplingInput], first_step: int = 0) -> list[Image.Image]:
        """Return the finished pictures, as the model's family finishes them."""
        finished = sample_latents(self.family, self.plan, drawings, first_step, self.on_step)
        return [self.family.finish(latents) for latents in finished]

    def without_guidance(self) -> LabContext:
        """Return the same without guidance, which needs a prompt."""
        return replace(self, guidance=1.0)


FRAME_MS = 120


def write_result(result: ExperimentResult, out: Path, *, as_json: bool) -> None:
    """Write `NAME.png`, and `NAME.webp` for a film, into `out`, and print the sentence.

    Existing files stay: the new one becomes `NAME-2.png`, and so on.
    """
    target = _find_free_path(ensure_folder(out), result.name)
    files = [target]
    with translate_write_errors(out):
        result.sheet.save(target)
        if result.frames:
            files.append(target.with_suffix(".webp"))
            write_film(result.frames, files[-1])
    if as_json:
        record = {"files": [str(file) for file in files], "sentence": result.summary, **result.figures}
        typer.echo(json.dumps(record, ensure_ascii=False))
    else:
        typer.echo(f"{', '.join(map(str, files))}: {result.summary}")


def _find_free_path(out: Path, name: str) -> Path:
    paths = (out / f"{name}{f'-{number}' if number > 1 else ''}.png" for number in count(1))
    return next(path for path in paths if not path.exists())


def write_film(frames: Sequence[Image.Image], target: Path, quality: int = 80) -> None:
    """Write the frames as an endless animation."""
    first, *other_frames = frames
    first.save(target, save_all=True, append_images=other_frames, duration=FRAME_MS, loop=0, quality=quality, method=4)


def ensure_folder(out: Path) -> Path:
    """Make the folder if it is missing, and check that it is writable. Raises `JobRejected`."""
    with translate_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out


@contextmanager
def translate_write_errors(out: Path) -> Generator[None]:
    """Turn an OSError into `JobRejected`."""
    try:
        yield
    except OSError as error:
        raise JobRejected(f"Nothing can be written to {error.filename or out}: {error.strerror}.", "member") from error
