"""An HTTP client of a measured system's page, served in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp

from benchmarks.queue.system.installation import BenchSystem, make_settings
from bot.web.app import build_app, run_server
from bot.web.auth import terminal_key


@asynccontextmanager
async def open_client(system: BenchSystem) -> AsyncGenerator[aiohttp.ClientSession]:
    """Yield an HTTP client of the system's page, with the terminal's key."""
    settings = make_settings(system.folder, f"sqlite:///{system.folder / 'darkroom.sqlite'}")
    app = build_app(settings, system.app.services)
    headers = {"Authorization": f"Bearer {terminal_key(system.folder)}"}
    async with (
        run_server(app, "127.0.0.1", 0) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers, read_bufsize=1 << 22) as client,
    ):
        yield client
