"""`darkroom imagine` without a running bot: the same grammar, with an engine in this process.

Torch is imported by a call. Writes no files and prints only progress and notes.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ulid import ULID

from bot.cli.at_the_store import at_the_store, settings_of
from bot.cli.bringing import Bringing, Rung
from bot.cli.developed import Developed, Undeveloped
from bot.cli.screen import Screen
from bot.desk.begun import Otherwise, begun, branched, nearest_said, one_of, shaped, unused
from bot.desk.origin import Origin, read
from bot.desk.reach import reason
from bot.desk.recipes import pinned, stations
from bot.images import rungs
from bot.images.film import film as film_of
from bot.images.gallery import Gallery
from bot.images.intake import Intake
from bot.images.links import leading
from bot.images.pictures import Pictures
from bot.images.walk import walk as walk_of
from bot.prompt import parse, recipe
from bot.prompt.possible import check_possible
from bot.refused import Refused
from bot.store import Record, Store
from bot.views import Member
from engine.job import Frame, Job, Recipe, Share, Warm, cost
from engine.sizes import loading

if TYPE_CHECKING:
    from bot.config import Settings
    from engine.families.family import Family

DAY = 86_400.0
OWNER = Share(tier="standard", guild="local", user="local:terminal")
TERMINAL = Member("local:terminal", "Terminal", "local")


def develop(
    prompt: str, options: Mapping[str, object], settings: Settings, *, bringing: Bringing, film: bool, screen: Screen
) -> Developed:
    """Run one prompt here. Raise `Refused` for a bad request, `Undeveloped` for any other failure."""
    missing = [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]
    if missing:
        raise Refused(f"No Darkroom is running, and {missing[0]} is not installed: pip install 'darkroom-bot[all]'.")
    if leading(prompt)[0]:
        raise Refused("Links need a running Darkroom (`darkroom up`). For a file of yours there is --image.")
    from engine.unfit import Unfit

    try:
        if bringing.branch is not None:
            return branched_here(prompt, options, settings, bringing.branch, film, screen)
        return _develop(prompt, options, settings.data, bringing, film, screen)
    except Unfit as error:
        if error.blame == "member":
            raise Refused(error.sentence) from error
        raise Undeveloped(error.sentence) from error


def _develop(
    prompt: str, options: Mapping[str, object], data: Path, bringing: Bringing, film: bool, screen: Screen
) -> Developed:
    start = _origin(bringing, screen)
    family, warm = _warm(_model(prompt, options), data, screen)
    parts = _recipes(prompt, {**options, "model": None}, warm, screen, start)
    walks, contents = parts[0].walk is not None, start.contents if start else {}
    done = [_run(part, contents, family, warm, film and not walks, screen, data) for part in parts]
    return _walked(done) if walks else done[0]


def _walked(parts: Sequence[Developed]) -> Developed:
    """Return the jobs of an interpolation as one, with its film."""
    pictures = tuple(picture for part in parts for picture in part.pictures)
    return replace(
        parts[0], pictures=pictures, film=walk_of(pictures), frames=sum(part.frames for part in parts),
        seconds=sum(part.seconds for part in parts),
    )  # fmt: skip


def _run(
    made: Recipe, contents: Mapping[str, bytes], family: Family, warm: Warm, film: bool, screen: Screen, data: Path
) -> Developed:
    from engine import alone
    from engine.map_files import MapFiles

    job, first = _job(made, warm, film), made.walk.first if made.walk else 0
    families, maps = {family.name: family}, MapFiles(data)
    done = alone.develop(job, families, contents, on_frame=lambda frame: _show(frame, screen, first), maps=maps)
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
    """Return a folder or a name; an option wins over the prompt's flag."""
    named = options.get("model") or parse(prompt, None, wordless=True).requests[0].model
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
    name = Path(model).name
    screen.load(f"loading {name}", None)
    device = best()
    resolver = SuperResolver.find(upscaler(), device)
    family = families.load(model, data, device=device, resolver=resolver, told=_told(name, model, data, screen))
    screen.load(f"measuring {name}", None)
    return family, calibrate(family, data / "calibration.json").warm(family)


def _told(name: str, model: str, data: Path, screen: Screen) -> Callable[[float], None]:
    """Return a callback that shows loading progress, in bytes where the model's files tell their size."""
    size: list[int] = []  # measured at the first call: files from the hub are here by then

    def told(done: float) -> None:
        if not size:
            size.append(_size(model, data))
        screen.load(loading(name, done, size[0]), round(100 * done))

    return told


def _size(model: str, data: Path) -> int:
    from engine.device import best
    from engine.families.formats import Choice
    from engine.families.source import find
    from engine.families.weighing import weigh

    own = data / "models"
    if not any(path.exists() for path in (Path(model), own / model, own / f"{model}.safetensors")):
        return 0  # on the hub: a size is not worth another request
    return weigh(find(model, data), Choice(best()))


def _origin(bringing: Bringing, screen: Screen) -> Origin | None:
    """Decode the init images as the bot does, and print its notes about them."""
    if not bringing.images:
        return None
    contents, mask = bringing.pictures(), bringing.painted()

    async def brought() -> Origin:
        intake = Intake()
        try:
            return await read(intake, contents, mask)
        finally:
            await intake.close()

    start = asyncio.run(brought())
    for note in start.notes:
        screen.say(note)
    return start


def _recipes(
    prompt: str, options: Mapping[str, object], warm: Warm, screen: Screen, start: Origin | None
) -> list[Recipe]:  # fmt: skip
    """Return the recipe as the bot makes it in exact mode, so that the pixels match; several for an interpolation."""
    parsed = parse(prompt, warm, options=options, wordless=start is not None)
    request = shaped(parsed.requests[0], start)
    for note in (*parsed.notes, *unused(request, start)):
        screen.say(note)
    made = begun(recipe(request, warm, secrets.randbelow(2**32)), request, start)
    parts = stations(made, request.walk, request.frames) if request.walk else [made]
    check_possible(parts[0], warm)
    return [pinned(part) for part in parts]


def branched_here(
    prompt: str, options: Mapping[str, object], settings: Settings, rung: Rung, film: bool, screen: Screen
) -> Developed:
    """Branch from a job in the store of this data folder. Raise `Refused` if it is not there."""
    record, ladder = at_the_store(settings_of(settings.data).database, lambda store: _branching(store, settings, rung))
    assert isinstance(record.task, Recipe)
    family, warm = _warm(record.task.model, settings.data, screen)
    sha256, step = hashlib.sha256(ladder).hexdigest(), rungs.nearest(ladder, rung.step)
    for note in nearest_said(step, rung.step):
        screen.say(note)
    other = Otherwise(record.prompt, prompt or None, options)
    made = branched(one_of(record.task, rung.image), sha256, step, other, warm)
    return _run(pinned(made), {sha256: ladder}, family, warm, film, screen, settings.data)


async def _branching(store: Store, settings: Settings, rung: Rung) -> tuple[Record, bytes]:
    """Return the job and its ladder, under the same checks as a running Darkroom applies to the terminal."""
    record = await store.record(rung.job)
    if record is None or record.deleted is not None or not isinstance(record.task, Recipe):
        raise Refused(f"There is no job {rung.job} here to branch from.")
    if said := reason("branch", TERMINAL, record):
        raise Refused(said, 403)
    gallery = Gallery(store, Pictures(settings.pictures))
    return record, await gallery.read(await gallery.ladder(rung.job, rung.image))


def _job(made: Recipe, warm: Warm, film: bool) -> Job:
    return Job(
        id=str(ULID()),
        task=made,
        share=OWNER,
        cost=cost(made, warm),
        deadline=time.time() + DAY,
        ladder=film,
    )


def _show(frame: Frame, screen: Screen, first: int) -> None:
    screen.step(frame.step, frame.of, frame.seconds_left)
    screen.frame(first + frame.image, frame.picture)
