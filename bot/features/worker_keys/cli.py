"""`darkroom worker-key`: the command line of the keys for workers on other machines; `key_admin` does the work.

Slow imports happen inside the command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bot.domain.errors import UserError


def worker_key(
    name: Annotated[str, typer.Argument(help="The worker's name, which must be unique.")] = "",
    pools: Annotated[str, typer.Option(metavar="NAMES", help="The pools it may serve, as default,big.")] = "default",
    revoke: Annotated[bool, typer.Option("--revoke", help="Revoke the key; that worker is disconnected.")] = False,
    list_keys: Annotated[bool, typer.Option("--list", help="List the workers that have a key.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of the store (DARKROOM_DATA).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a key for a worker on another machine: it opens that worker's part of the broker, and can be revoked."""
    if bool(name) == list_keys or (list_keys and revoke):
        raise UserError("Name one worker, or ask for --list.")
    from bot.app.settings import load_settings
    from bot.features.worker_keys import key_admin

    settings = load_settings(data)
    if list_keys:
        output = key_admin.list_keys(settings, as_json=as_json)
    elif revoke:
        output = key_admin.revoke_key(settings, name, as_json=as_json)
    else:
        output = key_admin.create_key(settings, name, pools, as_json=as_json)
    typer.echo(output)


COMMANDS = {"worker-key": worker_key}
