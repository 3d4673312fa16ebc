"""The SDK's own client to `darkroom mcp`, over stdio and over HTTP."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest_asyncio
from httpx2 import AsyncClient
from mcp import Client, StdioServerParameters
from mcp.client.session import MessageHandlerFnT
from mcp.client.streamable_http import streamable_http_client

from bot.apis.mcp.access import DarkroomAccess
from bot.apis.mcp.server import build_server
from bot.apis.mcp.transports import build_http_app, build_http_server
from bot.web.auth import HostPolicy
from shared.clock import wait_until
from shared.running_darkroom import ROOT, Darkroom


def open_stdio(darkroom: Darkroom, mode: str = "auto", **environment: str) -> Client:
    """`darkroom mcp` as a process of its own, as assistants start it."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DARKROOM_DATA": str(darkroom.data), **environment}
    server = StdioServerParameters(command=sys.executable, args=["-m", "bot", "mcp"], env=env, cwd=ROOT)
    return Client(server, mode=mode)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http_address(darkroom: Darkroom) -> AsyncIterator[str]:
    """The address of `darkroom mcp --http` for this Darkroom."""
    access = DarkroomAccess(darkroom.data, is_shared=True)
    app = build_http_app(await asyncio.to_thread(build_server, access), HostPolicy.from_settings("127.0.0.1", "", ()))
    server = build_http_server(app, "127.0.0.1", 0)
    task = asyncio.create_task(server.serve())
    await wait_until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mcp"
    server.should_exit = True
    await task


@asynccontextmanager
async def open_http(
    address: str, key: str = "", mode: str = "auto", on_message: MessageHandlerFnT | None = None
) -> AsyncGenerator[Client]:
    """A client over streamable HTTP that sends this key."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with AsyncClient(headers=headers, timeout=60) as http_client:
        transport = streamable_http_client(address, http_client=http_client)
        async with Client(transport, mode=mode, message_handler=on_message) as client:
            yield client
