"""`darkroom imagine`: runs one prompt in a running Darkroom, otherwise with an engine in this process.

Standard output carries only the result, standard error all else.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from bot.cli import remote
from bot.cli.bringing import Bringing
from bot.cli.developed import Developed, Undeveloped, as_json, check_folder, save
from bot.cli.own_options import meant
from bot.cli.running import find
from bot.cli.screen import Screen
from bot.prompt import parse
from bot.prompt.own import STANDS, foreign
from bot.prompt.permutations import literally
from bot.refused import Refused
from bot.sentences import shortened
from bot.web.auth import terminal_key
from engine.job import MAX_COUNT

if TYPE_CHECKING:
    from bot.config import Settings

NOTHING = Bringing()


@dataclass(frozen=True)
class Wish:
    """What the command line asks for. `options` are named as in `bot.prompt.parse` and win over flags."""

    prompt: str
    options: dict[str, object]
    out: Path
    film: bool
    as_json: bool
    bringing: Bringing = NOTHING


def run(wish: Wish, settings: Settings) -> int:
    """Make, write and print the pictures; return the exit code. Raise `Refused` for a bad request."""
    console = Console(file=sys.stderr if wish.as_json or not sys.stdout.isatty() else sys.stdout)
    wish, count, notes = _read(wish, meant(wish.prompt, settings))
    check_folder(wish.out)
    try:
        with Screen(console, count) as screen:
            for note in notes:
                screen.say(note)
            developed = _develop(wish, settings, screen)
    except Undeveloped as error:
        sys.stderr.write(f"darkroom: {error}\n")
        return 1
    pictures, film = save(developed, wish.out)
    if wish.as_json:
        sys.stdout.write(json.dumps(as_json(developed, pictures, film)) + "\n")
        return 0
    screen.show(list(developed.pictures))
    _say(developed, [*pictures, *([film] if film else [])])
    return 0


def _read(wish: Wish, own: Mapping[str, str]) -> tuple[Wish, int, list[str]]:
    """Return the wish with its flag aliases replaced, its number of pictures, and notes on the aliases.

    Raise `Refused` for what the grammar refuses, and for more than one job.
    """
    options = {**wish.options, "model": None} if _elsewhere(wish) else wish.options
    parsed = parse(wish.prompt, None, options=options, wordless=wish.bringing.anything, own=own)
    first, *others = parsed.requests
    if others:
        raise Refused(f"This makes {1 + len(others)} jobs, and a terminal develops one at a time: choose one.")
    count = first.frames if first.walk else first.count or (1 if wish.bringing.branch else MAX_COUNT)
    if not own:
        return wish, count, []
    said = [STANDS.format(name, shortened(own[name], 100)) for name in foreign(wish.prompt)]
    return replace(wish, prompt=literally(first.text)), count, said


def _elsewhere(wish: Wish) -> bool:
    """Return whether the model is a folder or a hub name, which prompts cannot name: it then runs in this process."""
    return "/" in str(wish.options.get("model") or "")


def _develop(wish: Wish, settings: Settings, screen: Screen) -> Developed:
    """Use the bot that runs on this data folder, if any: its engine is warm, and the job joins its batch."""
    running = None if _elsewhere(wish) else find(settings.data)
    if running is not None:
        found = asyncio.run(_in_the_house(running.url, wish, settings.data, screen))
        if found is not None:
            return found
    from bot.cli.own import develop  # imports torch

    return develop(wish.prompt, wish.options, settings, bringing=wish.bringing, film=wish.film, screen=screen)


async def _in_the_house(url: str, wish: Wish, data: Path, screen: Screen) -> Developed | None:
    if not await remote.answers(url):
        return None  # running.json is stale
    key = await asyncio.to_thread(terminal_key, data)
    asked = await asyncio.to_thread(wish.bringing.asked, wish.prompt, wish.options)
    return await remote.develop(url, key, asked, film=wish.film, screen=screen)


def _say(developed: Developed, paths: list[Path]) -> None:
    lines = [str(path) for path in paths]
    said = f"{developed.steps} steps of {developed.sampler}, seed {developed.seed}, {developed.seconds:.1f} s"
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stderr.write(f"{said}, {developed.ms_per_step:.1f} ms a step\n")
