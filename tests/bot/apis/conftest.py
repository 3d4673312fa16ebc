"""What the tests of other programs' APIs share: the servers of the web tests."""

from __future__ import annotations

from shared.web_server import broker, open_server, server, shared_server

__all__ = ["broker", "open_server", "server", "shared_server"]
