"""`darkroom imagine`: runs one prompt in a running Darkroom, otherwise with an engine in this process.

Standard output carries only the result, standard error everything else.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from bot.cli.imagine import http_client
from bot.cli.imagine.job_inputs import ImagineRequest
from bot.cli.imagine.progress_display import ProgressDisplay
from bot.cli.imagine.result import GenerationError, ImagineResult, check_output_folder, save_result, to_dict
from bot.cli.options import AS_CONFIGURED, TERMINAL_MEMBER_ID, load_engine
from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.prompt import parse
from bot.prompt.flag_aliases import ALIAS_NOTE, find_unknown_flags
from bot.prompt.permutations import escape_braces
from engine.contract import MAX_COUNT

if TYPE_CHECKING:
    from bot.app.settings import Settings
    from engine.process.settings import WorkerSettings


def run_imagine(request: ImagineRequest, settings: Settings) -> int:
    """Make, write and print the pictures; return the exit code. Raise `UserError` for a bad request."""
    console = Console(file=sys.stderr if request.as_json or not sys.stdout.isatty() else sys.stdout)
    engine = load_engine(settings, request.engine)  # a wrong word is refused before anything is loaded
    request, picture_count, notes = _resolve_request(request, _load_aliases(request.prompt, settings))
    check_output_folder(request.output_folder)
    try:
        with ProgressDisplay(console, picture_count) as display:
            for note in notes:
                display.print_note(note)
            result = _generate(request, settings, engine, display)
    except GenerationError as error:
        sys.stderr.write(f"darkroom: {error}\n")
        return 1
    picture_paths, film_path = save_result(result, request.output_folder)
    if request.as_json:
        sys.stdout.write(json.dumps(to_dict(result, picture_paths, film_path)) + "\n")
        return 0
    display.print_pictures(list(result.pictures))
    _print_summary(result, [*picture_paths, *([film_path] if film_path else [])])
    return 0


def _resolve_request(request: ImagineRequest, aliases: Mapping[str, str]) -> tuple[ImagineRequest, int, list[str]]:
    """Return the request with its flag aliases expanded, its number of pictures, and notes on the aliases.

    Raise `UserError` for what the grammar refuses, and for more than one job.
    """
    options = {**request.options, "model": None} if _is_model_path(request) else request.options
    parsed = parse(request.prompt, None, options=options, allow_empty=request.inputs.has_any, aliases=aliases)
    first_request, *other_requests = parsed.prompts
    if other_requests:
        raise UserError(
            f"This makes {1 + len(other_requests)} jobs, and `darkroom imagine` runs one at a time: remove the braces "
            "or --repeat."
        )
    picture_count = first_request.count or (1 if request.inputs.keyframe else MAX_COUNT)
    picture_count = first_request.frames if first_request.end_prompt else picture_count
    if not aliases:
        return request, picture_count, []
    notes = [ALIAS_NOTE.format(name, shorten(aliases[name], 100)) for name in find_unknown_flags(request.prompt)]
    return replace(request, prompt=escape_braces(first_request.text)), picture_count, notes


def _load_aliases(prompt: str, settings: Settings) -> dict[str, str]:
    """Return the terminal's flag aliases if `prompt` may use one. If all its flags are known, open no store."""
    from bot.cli.store_session import run_with_store
    from bot.jobs.preferences import Preferences
    from bot.store.drivers.database import find_sqlite_path

    database = find_sqlite_path(settings.database)
    if not find_unknown_flags(prompt) or (database is not None and not database.is_file()):
        return {}
    member = TERMINAL_MEMBER_ID
    return run_with_store(settings.database, lambda store: Preferences(store).load_flag_aliases(member, prompt))


def _is_model_path(request: ImagineRequest) -> bool:
    """Return whether prompts cannot name the model: a folder, a hub name, `NAME=int8`. It then runs in this process."""
    return any(sign in str(request.options.get("model") or "") for sign in "/=")


def _generate(
    request: ImagineRequest, settings: Settings, engine: WorkerSettings, display: ProgressDisplay
) -> ImagineResult:
    """Use the bot that runs on this data folder, if any: it has the model in memory, and the job joins its batch."""
    result = None if _is_model_path(request) else asyncio.run(_generate_remotely(request, settings.data, display))
    if result is None:
        from bot.cli.imagine.local_engine import generate  # imports torch

        return generate(request, settings, engine, display)
    if request.engine != AS_CONFIGURED:
        display.print_note("The running Darkroom drew this: its own start says how weights are stored.")
    return result


async def _generate_remotely(request: ImagineRequest, data: Path, display: ProgressDisplay) -> ImagineResult | None:
    running = await http_client.find_running(data)
    if running is None:
        return None
    api_request = await asyncio.to_thread(request.inputs.build_request, request.prompt, request.options)
    return await http_client.generate(*running, api_request, film=request.with_film, display=display)


def _print_summary(result: ImagineResult, paths_written: list[Path]) -> None:
    evaluations = f" with {result.evaluations} evaluations" if result.evaluations < result.steps else ""
    summary = f"{result.steps} steps of {result.sampler}{evaluations}, seed {result.seed}, {result.seconds:.1f} s"
    sys.stdout.write("\n".join(map(str, paths_written)) + "\n")
    sys.stderr.write(f"{summary}, {result.ms_per_step:.1f} ms {'an evaluation' if evaluations else 'a step'}\n")
