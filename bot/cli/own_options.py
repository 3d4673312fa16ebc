"""`darkroom option`: the terminal's flag aliases, and what `--mine` in a prompt there stands for.

They are kept in the data folder's store, so they work with and without a running bot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bot.cli.options import Data
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.config import Settings
    from bot.store import Store

TERMINAL = "local:terminal"  # the terminal's member id, as in `bot.web.door`


def option(
    name: Annotated[str, typer.Argument(help="Its name: mine is typed as --mine. Without one, all are listed.")] = "",
    value: Annotated[str | None, typer.Argument(help='Words and flags, as "--ar 3:2 --steps 200".')] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it.")] = False,
    data: Data = None,
) -> None:
    """Define a flag alias for `darkroom imagine`: what --mine in a prompt stands for."""
    from bot.cli.at_the_store import at_the_store, settings_of

    if bool(name) != (value is not None or delete) or (delete and value is not None):
        raise Refused("A name goes with a value, or with --delete; without any, all options are listed.")
    settings = settings_of(data)
    typer.echo(at_the_store(settings.database, lambda store: _done(store, name, value or "", delete)))


async def _done(store: Store, name: str, value: str, delete: bool) -> str:
    from bot.desk.options import Options

    options = Options(store, list)  # a terminal may use models that no store knows
    if delete:
        return f"--{await options.drop(TERMINAL, name)} is deleted."
    if name:
        name = await options.put(TERMINAL, name, value)
    mine = await options.of(TERMINAL)
    shown = {name: mine[name]} if name else mine
    return "\n".join(f"--{one}  {text}" for one, text in shown.items()) or "There is no option yet."


def meant(prompt: str, settings: Settings) -> dict[str, str]:
    """Return the terminal's flag aliases if `prompt` may use one. If all its flags are known, open no store."""
    from bot.cli.at_the_store import at_the_store
    from bot.prompt.own import foreign
    from bot.store import copying, options

    database = copying.file_of(settings.database)
    if not foreign(prompt) or (database is not None and not database.is_file()):
        return {}
    return at_the_store(settings.database, lambda store: store.ask(options.of, TERMINAL))
