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

Picture = Annotated[Path, typer.Argument(metavar="PICTURE", help="A picture file.")]
Model = Annotated[str | None, typer.Option(help="Which model scores the words; by default the bot's default model.")]

NOT_RUNNING = "No Darkroom is running on this data folder: start `darkroom up`, whose engine does the work."


def describe(picture: Picture, model: Model = None, as_json: AsJson = False, data: Data = None) -> None:
    """Suggest prompts for a picture, from words that a model knows, the best first."""
    from bot.app.settings import load_settings
    from bot.cli.imagine import http_client
    from bot.cli.imagine.job_inputs import JobInputs
    from bot.cli.imagine.result import GenerationError
    from bot.cli.instance_lock import find_instance
    from bot.web.auth import terminal_key

    (content,) = JobInputs((picture,)).read_pictures()
    folder = load_settings(data).data
    instance = find_instance(folder)
    if instance is None or not asyncio.run(http_client.is_darkroom_running(instance.url)):
        raise UserError(NOT_RUNNING)
    try:
        result = asyncio.run(_request_description(instance.url, terminal_key(folder), content, model))
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
