"""What the tests of features share: the fixtures of the web's and Discord's tests."""

from __future__ import annotations

from shared.discord_world import open_world
from shared.web_server import broker, browser, open_server, page, server, shared_server

__all__ = ["broker", "browser", "open_server", "open_world", "page", "server", "shared_server"]
