"""`darkroom mcp`: the options of its command line."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import Annotated

import typer

from bot.cli.options import Data
from bot.domain.errors import UserError

MISSING_EXTRA = "`darkroom mcp` needs an extra: pip install 'darkroom-bot[mcp]'."
DEFAULT_PORT = 8190


def mcp(
    http: Annotated[bool, typer.Option("--http", help="Serve by streamable HTTP, else standard input.")] = False,
    host: Annotated[str, typer.Option(help="With --http, the address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --http, the port.")] = DEFAULT_PORT,
    url: Annotated[
        str, typer.Option(metavar="URL", help="A Darkroom elsewhere, with its key in DARKROOM_API_KEY.")
    ] = "",
    data: Data = None,
) -> None:
    """Let an assistant draw with the running Darkroom, by the Model Context Protocol (MCP)."""
    if find_spec("mcp") is None or find_spec("mcp_types") is None:
        raise UserError(MISSING_EXTRA)
    if url and not url.startswith(("http://", "https://")):
        raise UserError("--url begins with http:// or https://.")
    from bot.apis.mcp.access import DarkroomAccess
    from bot.apis.mcp.server import build_server
    from bot.apis.mcp.transports import PATH, build_http_app, build_http_server, serve_stdio
    from bot.app.settings import load_settings
    from bot.cli.instance_lock import check_port_free
    from bot.web.auth import HostPolicy

    settings = load_settings(data)
    key = settings.api_key.get_secret_value() if settings.api_key and not http else ""
    policy = HostPolicy.from_settings(host, settings.public_url, settings.allowed_hosts)
    access = DarkroomAccess(
        settings.data, url.rstrip("/"), key, is_shared=http, is_relayed=http and not policy.is_local
    )
    server = build_server(access)
    if not http:
        asyncio.run(serve_stdio(server))
        return
    check_port_free(host, port)
    typer.echo(f"Darkroom's MCP server: http://{host}:{port}{PATH}", err=True)
    asyncio.run(build_http_server(build_http_app(server, policy), host, port).serve())


COMMANDS = {"mcp": mcp}
