"""Opens the model for an experiment, with a progress bar on standard error; holds the default list of words."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.contract.rejection import JobRejected

if TYPE_CHECKING:
    from engine.models.family import TokenConditioned
    from training.lab.context import LabContext

DEFAULT_WORDS = Path(__file__).parents[2] / "engine" / "weights" / "words.json"  # --help must not import torch
MAX_PROMPT_LENGTH = 2000  # of a prompt, as in the bot


@contextmanager
def open_context(model: str, steps: int, guidance: float | None, seed: int) -> Generator[LabContext]:
    """Open a model with its settings; a bar counts the steps. Raises `JobRejected`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from training.lab.context import LabContext

    family = load_family(model)
    columns = (TextColumn("developing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress_bar:
        task = progress_bar.add_task("developing", total=None)
        guidance_scale = family.guidance if guidance is None else guidance
        yield LabContext(
            family,
            steps,
            guidance_scale,
            seed,
            lambda finished, total: progress_bar.update(task, completed=finished, total=total),
        )


def load_family(model: str) -> TokenConditioned:
    """Load any model that the engine loads, or a training run's folder, which has no text encoder."""
    from engine.device.torch_device import choose_device
    from engine.models import load_model
    from engine.models.families.embedded import load_embedded
    from engine.models.families.stable_diffusion import StableDiffusion
    from engine.process.settings import load_settings
    from engine.upscaling.super_resolver import SuperResolver

    folder = Path(model)
    device = choose_device()
    settings = load_settings()
    resolver = SuperResolver.load(settings.upscaler, device)
    if (folder / "unet").is_dir() and (folder / "vae").is_dir() and not (folder / "text_encoder").exists():
        return load_embedded(device, folder, resolver)
    family = load_model(model, settings.data, device=device, resolver=resolver)
    if not isinstance(family, StableDiffusion) or family.guides != "rows":
        raise JobRejected(f"The lab takes Stable Diffusion 1.x and 2.x; {family.name} is something else.", "model")
    return family


def clean_prompt(prompt: str) -> str:
    """Return a prompt on one line. Raises `JobRejected` if it is too long."""
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise JobRejected(f"A prompt may have {MAX_PROMPT_LENGTH} characters; this one has {len(prompt)}.", "member")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in prompt).split())
