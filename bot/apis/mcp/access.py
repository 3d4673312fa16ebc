"""Which Darkroom the server asks, and whose key its requests carry."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import aiohttp

from bot.cli.imagine import http_client
from bot.cli.instance_lock import find_instance
from bot.domain.errors import UserError
from bot.web.auth import terminal_key

NOT_RUNNING = "No Darkroom is running on this data folder: start `darkroom up`."
# RFC 9110, 7.6.3. A chatroom for its own machine alone lets everybody in, so it refuses what was relayed.
VIA: Mapping[str, str] = MappingProxyType({"Via": "1.1 darkroom-mcp"})
BEARER = re.compile(r"Bearer ([!-~]{1,512})", re.IGNORECASE)


@dataclass(frozen=True)
class DarkroomAccess:
    """A running Darkroom: the one at `url`, else the one that runs on the folder `data`.

    `key`: what every request carries; empty: over stdio the terminal's key. `is_shared`: others call over HTTP, so a
    request carries its own caller's key and no other, and names no files of this machine. `is_relayed`: some of them
    are on other machines, and Darkroom is told so.
    """

    data: Path
    url: str = ""
    key: str = field(default="", repr=False)
    is_shared: bool = False
    is_relayed: bool = False

    async def open_session(
        self, authorization: str, timeout: aiohttp.ClientTimeout = http_client.REQUEST_TIMEOUT
    ) -> aiohttp.ClientSession:
        """Return a session for a caller whose request has this Authorization header. Raise `UserError`."""
        url = self.url or await asyncio.to_thread(self._find_url)
        headers = VIA if self.is_relayed else http_client.NO_HEADERS
        return http_client.open_session(url, await self._select_key(authorization), timeout, headers)

    def _find_url(self) -> str:
        instance = find_instance(self.data)
        if instance is None:
            raise UserError(NOT_RUNNING)
        return instance.url

    async def _select_key(self, authorization: str) -> str:
        if self.is_shared:
            return read_bearer_key(authorization)
        # the terminal's key stays on this machine
        return self.key or ("" if self.url else await asyncio.to_thread(terminal_key, self.data))


def read_bearer_key(authorization: str) -> str:
    """Return the key of an Authorization header; empty if it has none."""
    match = BEARER.fullmatch(authorization)
    return match[1] if match else ""
