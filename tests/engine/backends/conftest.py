"""What the tests of backends share: the servers of the web tests."""

from __future__ import annotations

from shared.web_server import broker, open_server

__all__ = ["broker", "open_server"]
