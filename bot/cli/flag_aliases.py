"""`darkroom flag-alias`: the terminal's flag aliases, and what `--mine` in a prompt there stands for.

They are kept in the data folder's store, so they work with and without a running bot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bot.cli.options import Data
from bot.domain.errors import UserError

if TYPE_CHECKING:
    from bot.app.settings import Settings
    from bot.store import Store

TERMINAL_MEMBER_ID = "local:terminal"  # the terminal's member id, as in `bot.web.middleware`


def flag_alias(
    name: Annotated[str, typer.Argument(help="Its name: mine is typed as --mine. Without one, all are listed.")] = "",
    value: Annotated[str | None, typer.Argument(help='Words and flags, as "--ar 3:2 --steps 200".')] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it.")] = False,
    data: Data = None,
) -> None:
    """Define a flag alias for `darkroom imagine`: what --mine in a prompt stands for."""
    from bot.cli.store_session import load_store_settings, run_with_store

    if bool(name) != (value is not None or delete) or (delete and value is not None):
        raise UserError("A name goes with a value, or with --delete; without any, all aliases are listed.")
    settings = load_store_settings(data)
    typer.echo(run_with_store(settings.database, lambda store: _apply_alias(store, name, value or "", delete)))


async def _apply_alias(store: Store, name: str, value: str, delete: bool) -> str:
    from bot.services.flag_aliases import FlagAliases

    flag_aliases = FlagAliases(store, list)  # a terminal may use models that no store knows
    if delete:
        return f"--{await flag_aliases.delete_alias(TERMINAL_MEMBER_ID, name)} is deleted."
    if name:
        name = await flag_aliases.set_alias(TERMINAL_MEMBER_ID, name, value)
    aliases = await flag_aliases.list_aliases(TERMINAL_MEMBER_ID)
    selected = {name: aliases[name]} if name else aliases
    return "\n".join(f"--{alias}  {text}" for alias, text in selected.items()) or "There is no alias yet."


def load_aliases(prompt: str, settings: Settings) -> dict[str, str]:
    """Return the terminal's flag aliases if `prompt` may use one. If all its flags are known, open no store."""
    from bot.cli.store_session import run_with_store
    from bot.prompt.flag_aliases import find_unknown_flags
    from bot.store.drivers.database import find_sqlite_path
    from bot.store.members import flag_aliases

    database = find_sqlite_path(settings.database)
    if not find_unknown_flags(prompt) or (database is not None and not database.is_file()):
        return {}
    return run_with_store(
        settings.database, lambda store: store.query(flag_aliases.list_flag_aliases, TERMINAL_MEMBER_ID)
    )
