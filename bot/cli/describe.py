"""`darkroom describe`: suggests prompts for a picture file; the running `darkroom up` does the work.

Standard output carries only the prompts, or JSON; notes go to standard error.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from bot.cli.options import AsJson, Data
from bot.refused import Refused

Picture = Annotated[Path, typer.Argument(metavar="PICTURE", help="A picture file.")]
Model = Annotated[str | None, typer.Option(help="Which model scores the words; by default the bot's default model.")]

NOBODY = "No Darkroom is running on this data folder: start `darkroom up`, whose engine does the work."


def describe(picture: Picture, model: Model = None, as_json: AsJson = False, data: Data = None) -> None:
    """Suggest prompts for a picture, from words that a model knows, the best first."""
    from bot.cli import remote
    from bot.cli.bringing import Bringing
    from bot.cli.developed import Undeveloped
    from bot.cli.running import find
    from bot.config import load
    from bot.web.auth import terminal_key

    (content,) = Bringing((picture,)).pictures()
    folder = load(**({} if data is None else {"data": data})).data
    running = find(folder)
    if running is None or not asyncio.run(remote.answers(running.url)):
        raise Refused(NOBODY)
    try:
        found = asyncio.run(remote.describe(running.url, terminal_key(folder), content, model))
    except Undeveloped as error:
        typer.echo(f"darkroom: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps({"picture": str(picture), **found}, ensure_ascii=False))
        return
    for one in found["prompts"]:
        typer.echo(one["prompt"])
        typer.echo(f"{100 * one['gain']:.0f} % less error than without words", err=True)
    for line in (*found["notes"], found["sentence"]):
        typer.echo(line, err=True)
