"""The fixtures of the web's tests: a page on a real server, and a browser to visit it."""

from __future__ import annotations

from shared.web_server import broker, browser, open_server, page, server, shared_server

__all__ = ["broker", "browser", "open_server", "page", "server", "shared_server"]
