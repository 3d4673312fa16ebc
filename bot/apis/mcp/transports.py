"""The two transports: standard input and output, for a program on this machine, and streamable HTTP for others."""

from __future__ import annotations

import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from bot.apis.mcp.access import read_bearer_key
from bot.apis.mcp.arguments import MAX_PICTURE
from bot.domain.errors import UserError
from bot.web.auth import HostPolicy

PATH = "/mcp"
MAX_BODY_BYTES = MAX_PICTURE + 2**20
MAX_CONNECTIONS = 100  # beyond these, uvicorn answers 503
MAX_SESSIONS = 100  # of clients of earlier protocols
IDLE_SECONDS = 1800.0  # after which such a session ends
SHUTDOWN_SECONDS = 5
KEY_NEEDED = "Send a key: Authorization: Bearer KEY."


async def serve_stdio(server: Server) -> None:
    """Serve one client over standard input and output, until it closes them."""
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


class HostGuard:
    """Refuses what the chatroom would refuse: unknown hosts, other sites' pages, and proxies before an open server.

    Where others than this machine can connect, a request also needs a key. Darkroom checks it.
    """

    def __init__(self, app: ASGIApp, policy: HostPolicy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._find_refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _find_refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        try:
            self._policy.check_request(scope["method"], headers, is_http_1_0=scope["http_version"] == "1.0")
        except UserError as error:
            return PlainTextResponse(error.sentence, error.status)
        if self._policy.is_local or read_bearer_key(headers.get("Authorization", "")):
            return None
        return PlainTextResponse(KEY_NEEDED, 401, {"WWW-Authenticate": "Bearer"})


def build_http_app(server: Server, policy: HostPolicy) -> ASGIApp:
    """Return the application that serves `/mcp`. The SDK's own check of Host and Origin is off: `HostGuard` is it."""
    app = server.streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=MAX_BODY_BYTES,
        max_sessions=MAX_SESSIONS,
        session_idle_timeout=IDLE_SECONDS,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    return HostGuard(app, policy)


def build_http_server(app: ASGIApp, host: str, port: int) -> uvicorn.Server:
    """Return a web server; `await server.serve()` runs it until a signal."""
    config = uvicorn.Config(
        app,
        host=host.strip("[]"),
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)
