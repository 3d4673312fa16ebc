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

from bot.cli.options import AsJson, Data
from bot.domain.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bot.app.settings import Settings
    from bot.store import Store
    from bot.store.members.sessions import VisitorSession


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
        typer.echo("\n".join(_format_session(session) for session in sessions_now))
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
    if everybody and not asyncio.run(_void_invitations(settings.data)):  # first: nobody may use one meanwhile
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

    typer.echo(asyncio.run(_invite(load_settings(data), guest)))


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


async def _invite(settings: Settings, is_guest: bool) -> str:
    url = await _find_running_url(settings.data)
    if url is None:
        raise UserError(f"No Darkroom runs on {settings.data}: start it with `darkroom up`, which prints an address.")
    reply = await _change_invitations("POST", url, settings.data, {"for_operator": not is_guest})
    return f"{settings.public_url.rstrip('/') or url}{reply['path']}"


async def _void_invitations(folder: Path) -> bool:
    """Make the running bot's unused one-time addresses worthless. False: none answers here."""
    url = await _find_running_url(folder)
    if url is not None:
        await _change_invitations("DELETE", url, folder)
    return url is not None


async def _find_running_url(folder: Path) -> str | None:
    from bot.cli.imagine.http_client import is_darkroom_running
    from bot.cli.instance_lock import find_instance

    instance = find_instance(folder)
    return instance.url if instance is not None and await is_darkroom_running(instance.url) else None


async def _change_invitations(
    method: str, url: str, folder: Path, body: Mapping[str, object] | None = None
) -> dict[str, Any]:
    from bot.cli.imagine.http_client import request_json
    from bot.cli.imagine.result import GenerationError
    from bot.web.auth import terminal_key

    key = await asyncio.to_thread(terminal_key, folder)
    try:
        return await request_json(method, url, key, "/api/invitations", body)
    except GenerationError as error:
        raise UserError(str(error)) from error


def _format_session(session: VisitorSession) -> str:
    issued, used = (time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) for at in (session.issued, session.used))
    until = time.strftime("%Y-%m-%d", time.localtime(session.expires))
    return _format_row(session.visitor, "visitor" if session.kind == "open" else session.kind, issued, used, until)


def _format_row(visitor: str, kind: str, issued: str, used: str, until: str) -> str:
    return f"{visitor:16}  {kind:8}  {issued:16}  {used:16}  {until}"
