"""`darkroom imagine` without a running house: the same grammar, an engine in this process. Torch comes with a call.

Knows how a prompt becomes a job and who develops it; knows nothing of files or what is printed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ulid import ULID

from bot.cli.developed import Developed, Undeveloped
from bot.cli.screen import Screen
from bot.desk.recipes import pinned
from bot.images.film import film as film_of
from bot.prompt import parse, recipe
from bot.refused import Refused
from engine.job import Frame, Job, Recipe, Share, Warm, cost

if TYPE_CHECKING:
    from engine.families.family import Family

DAY = 86_400.0
OWNER = Share(tier="standard", guild="local", user="local:terminal")


def develop(prompt: str, options: Mapping[str, object], data: Path, *, film: bool, screen: Screen) -> Developed:
    """Runs one prompt here. Raises `Refused` for what is the member's business, `Undeveloped` for what is not."""
    missing = [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]
    if missing:
        raise Refused(f"No Darkroom is running, and {missing[0]} is not installed: pip install 'darkroom-bot[all]'.")
    from engine.unfit import Unfit

    try:
        return _develop(prompt, options, data, film, screen)
    except Unfit as error:
        if error.blame == "member":
            raise Refused(error.sentence) from error
        raise Undeveloped(error.sentence) from error


def _develop(prompt: str, options: Mapping[str, object], data: Path, film: bool, screen: Screen) -> Developed:
    from engine import alone

    family, warm = _warm(_model(prompt, options), data, screen)
    made = _recipe(prompt, {**options, "model": None}, warm, screen)
    job = _job(made, warm, film)
    done = alone.develop(job, {family.name: family}, on_frame=lambda frame: _show(frame, screen))
    return Developed(
        id=job.id,
        seed=made.seed,
        steps=made.steps,
        sampler=made.sampler,
        pictures=tuple(done.pictures),
        film=film_of(done.ladders, finals=done.pictures) if film else None,
        frames=done.frames,
        seconds=done.seconds,
        ms_per_step=done.ms_per_step,
    )


def _model(prompt: str, options: Mapping[str, object]) -> str:
    """Folder or name; an option wins over the prompt's flag."""
    named = options.get("model") or parse(prompt, None).requests[0].model
    return str(named or "embedded")


def _warm(model: str, data: Path, screen: Screen) -> tuple[Family, Warm]:
    from engine import families
    from engine.calibration import calibrate
    from engine.config import upscaler
    from engine.device import best
    from engine.super_resolver import SuperResolver

    if "/" in model:
        screen.say(f"{model} is loaded here. `darkroom up --model {model}` keeps it warm.")
    else:
        screen.say(f"No Darkroom is running: {model} is loaded here. `darkroom up` keeps it warm.")
    screen.load(f"loading {Path(model).name}", None)
    device = best()
    resolver = SuperResolver.find(upscaler(), device)
    told = _told(f"loading {Path(model).name}", screen)
    family = families.load(model, data, device=device, resolver=resolver, told=told)
    return family, calibrate(family, data / "calibration.json").warm(family)


def _told(sentence: str, screen: Screen) -> Callable[[float], None]:
    return lambda done: screen.load(sentence, round(100 * done))


def _recipe(prompt: str, options: Mapping[str, object], warm: Warm, screen: Screen) -> Recipe:
    """As the studio makes it in exact mode, so that the pixels are the same."""
    parsed = parse(prompt, warm, options=options)
    for note in parsed.notes:
        screen.say(note)
    return pinned(recipe(parsed.requests[0], warm, secrets.randbelow(2**32)))


def _job(made: Recipe, warm: Warm, film: bool) -> Job:
    return Job(
        id=str(ULID()),
        task=made,
        share=OWNER,
        cost=cost(made, warm),
        deadline=time.time() + DAY,
        ladder=film,
    )


def _show(frame: Frame, screen: Screen) -> None:
    screen.step(frame.step, frame.of, frame.seconds_left)
    screen.frame(frame.image, frame.picture)
