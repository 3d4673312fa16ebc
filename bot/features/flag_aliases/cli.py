"""`darkroom flag-alias`: the terminal's flag aliases, and what `--mine` in a prompt there stands for.

They are kept in the data folder's store, so they work with and without a running bot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bot.cli.options import TERMINAL_MEMBER_ID, Data
from bot.domain.errors import UserError

if TYPE_CHECKING:
    from bot.store import Store


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
    from bot.features.flag_aliases.service import FlagAliases

    flag_aliases = FlagAliases(store, list)  # a terminal may use models that no store knows
    if delete:
        return f"--{await flag_aliases.delete_alias(TERMINAL_MEMBER_ID, name)} is deleted."
    if name:
        name = await flag_aliases.set_alias(TERMINAL_MEMBER_ID, name, value)
    aliases = await flag_aliases.list_aliases(TERMINAL_MEMBER_ID)
    selected = {name: aliases[name]} if name else aliases
    return "\n".join(f"--{alias}  {text}" for alias, text in selected.items()) or "There is no alias yet."


COMMANDS = {"flag-alias": flag_alias}
CONTEXT_SETTINGS = {"ignore_unknown_options": True}  # values may begin with dashes
