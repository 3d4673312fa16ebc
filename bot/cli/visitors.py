"""`darkroom visitors`: who is signed in to the chatroom; sign somebody out; a new one-time address.

`list` and `revoke` work on the store, with or without a running bot, which notices at the next request. `invite` asks
the running bot. Slow imports happen inside the commands.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bot.cli.options import AsJson, Data, format_minute
from bot.domain.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bot.store import Store


app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Visitors of the chatroom: list who is signed in, sign somebody out, make a new one-time address.",
)


@app.command("list")
def list_visitors(as_json: AsJson = False, data: Data = None) -> None:
    """List the browsers that are signed in, the last used first."""
    from bot.cli.store_session import load_store_settings, run_with_store
    from bot.store.members import sessions

    sessions_now = run_with_store(
        load_store_settings(data).database, lambda store: store.query(sessions.list_sessions, time.time())
    )
    if as_json:
        typer.echo(json.dumps([asdict(session) for session in sessions_now], indent=1))
    elif sessions_now:
        typer.echo(_format_row("visitor", "kind", "signed in", "last used", "until"))
        for session in sessions_now:
            issued, used, until = map(format_minute, (session.issued, session.used, session.expires))
            kind = "visitor" if session.kind == "open" else session.kind
            typer.echo(_format_row(session.visitor, kind, issued, used, until.partition(" ")[0]))
    else:
        typer.echo("Nobody is signed in.")


@app.command()
def revoke(
    visitors: Annotated[list[str] | None, typer.Argument(metavar="ID …", help="Ids, or their beginnings.")] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Everybody, the operator too.")] = False,
    data: Data = None,
) -> None:
    """Sign visitors out: their browsers need a new address. An open page goes on for ten seconds at most.

    With --all the one-time addresses that nobody has used are void, too.
    """
    from bot.cli.store_session import load_store_settings, run_with_store

    if bool(visitors) == everybody:
        raise UserError("Name visitors by their ids, or ask for --all.")
    settings = load_store_settings(data)
    # first: nobody may use one meanwhile
    if everybody and asyncio.run(_change_invitations("DELETE", settings.data)) is None:
        typer.echo("No bot answers on this machine: one-time addresses of another stay valid until it starts anew.")
    count = run_with_store(settings.database, lambda store: _revoke(store, visitors or []))
    typer.echo(f"{count} {'browser is' if count == 1 else 'browsers are'} signed out.")


@app.command()
def invite(
    guest: Annotated[bool, typer.Option("--guest", help="For a guest, without the operator's rights.")] = False,
    data: Data = None,
) -> None:
    """Print a one-time address of the running bot: it signs one browser in, as the operator."""
    from bot.app.settings import load_settings

    settings = load_settings(data)
    answer = asyncio.run(_change_invitations("POST", settings.data, {"for_operator": not guest}))
    if answer is None:
        raise UserError(f"No Darkroom runs on {settings.data}: start it with `darkroom up`, which prints an address.")
    url, reply = answer
    typer.echo(f"{settings.public_url.rstrip('/') or url}{reply['path']}")


async def _revoke(store: Store, id_prefixes: list[str]) -> int:
    from bot.store.members import sessions

    if not id_prefixes:
        return await store.write(sessions.delete_all_sessions)
    known_ids = {session.visitor for session in await store.query(sessions.list_sessions, time.time())}
    visitors = [_match_visitor(prefix, known_ids) for prefix in id_prefixes]
    return await store.write(sessions.delete_visitors_sessions, visitors)


def _match_visitor(prefix: str, known_ids: set[str]) -> str:
    matches = [visitor for visitor in known_ids if prefix and visitor.startswith(prefix)]
    if len(matches) != 1:
        count_text = "No visitor" if not matches else "More than one visitor"
        raise UserError(f"{count_text} with an id such as {prefix[:40]!r} is signed in: `darkroom visitors list`.")
    return matches[0]


async def _change_invitations(
    method: str, folder: Path, body: Mapping[str, object] | None = None
) -> tuple[str, dict[str, Any]] | None:
    """Make one-time addresses of the running bot, or void them. Return its address and answer; None: none answers."""
    from bot.cli.imagine.http_client import find_running, request_json
    from bot.cli.imagine.result import GenerationError

    running = await find_running(folder)
    try:
        return running and (running[0], await request_json(method, *running, "/api/invitations", body))
    except GenerationError as error:
        raise UserError(str(error)) from error


def _format_row(visitor: str, kind: str, issued: str, used: str, until: str) -> str:
    return f"{visitor:16}  {kind:8}  {issued:16}  {used:16}  {until}"
