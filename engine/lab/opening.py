"""Opens the model for an experiment, with a progress bar on standard error; holds the default list of words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.unfit import Unfit

if TYPE_CHECKING:
    from engine.families.family import Worded
    from engine.lab.room import Room

WORDS = Path(__file__).parent.parent / "weights" / "words.json"
MAX_CHARACTERS = 2000  # of a prompt, as in the bot


@contextmanager
def room(model: str, steps: int, guidance: float | None, seed: int) -> Iterator[Room]:
    """Open a model with its settings; a bar counts the steps. Raises `Unfit`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from engine.lab.room import Room

    family = loaded(model)
    columns = (TextColumn("developing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("developing", total=None)
        chosen = family.guidance if guidance is None else guidance
        yield Room(family, steps, chosen, seed, lambda done, of: bar.update(task, completed=done, total=of))


def loaded(model: str) -> Worded:
    """Load any model that the engine loads, or a training run's folder, which has no text encoder."""
    from engine.config import default_data, upscaler
    from engine.device import best
    from engine.families import load
    from engine.families.embedded import load_embedded
    from engine.families.stable_diffusion import StableDiffusion
    from engine.super_resolver import SuperResolver

    folder, device = Path(model), best()
    resolver = SuperResolver.find(upscaler(), device)
    if (folder / "unet").is_dir() and (folder / "vae").is_dir() and not (folder / "text_encoder").exists():
        return load_embedded(device, folder, resolver)
    family = load(model, Path(os.environ.get("DARKROOM_DATA") or default_data()), device=device, resolver=resolver)
    if not isinstance(family, StableDiffusion) or family.guides != "rows":
        raise Unfit(f"The lab takes Stable Diffusion 1.x and 2.x; {family.name} is something else.", "model")
    return family


def asked(prompt: str) -> str:
    """Return a prompt on one line. Raises `Unfit` if it is too long."""
    if len(prompt) > MAX_CHARACTERS:
        raise Unfit(f"A prompt may have {MAX_CHARACTERS} characters; this one has {len(prompt)}.", "member")
    return " ".join("".join(mark if mark.isprintable() else " " for mark in prompt).split())
