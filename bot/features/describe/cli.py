"""`darkroom describe`: suggests prompts for a picture file; it asks the running `darkroom up`.

Standard output carries only the prompts, or JSON; notes go to standard error.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bot.cli.options import AsJson, Data
from bot.domain.errors import UserError

NOT_RUNNING = "No Darkroom is running on this data folder: start `darkroom up`, whose engine does the work."


def describe(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A picture file.")],
    model: Annotated[
        str | None, typer.Option(help="Which model scores the words; by default the bot's default model.")
    ] = None,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Suggest prompts for a picture, from words that a model knows, the best first."""
    from bot.app.settings import load_settings
    from bot.cli.imagine.http_client import find_running
    from bot.cli.imagine.job_inputs import read_files
    from bot.cli.imagine.result import GenerationError

    (content,) = read_files([picture])
    running = asyncio.run(find_running(load_settings(data).data))
    if running is None:
        raise UserError(NOT_RUNNING)
    try:
        result = asyncio.run(_request_description(*running, content, model))
    except GenerationError as error:
        typer.echo(f"darkroom: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps({"picture": str(picture), **result}, ensure_ascii=False))
        return
    for suggestion in result["prompts"]:
        typer.echo(suggestion["prompt"])
        typer.echo(f"{100 * suggestion['error_reduction']:.0f} % less error than without words", err=True)
    for line in (*result["notes"], result["sentence"]):
        typer.echo(line, err=True)


async def _request_description(url: str, key: str, picture: bytes, model: str | None) -> dict[str, Any]:
    from bot.cli.imagine import http_client

    async with http_client.open_session(url, key, http_client.DESCRIBE_TIMEOUT) as session:
        return await http_client.request_description(session, picture, model)


COMMANDS = {"describe": describe}
