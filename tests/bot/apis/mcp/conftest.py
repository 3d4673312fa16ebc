"""The fixtures of the tests of `darkroom mcp`."""

from __future__ import annotations

from shared.running_darkroom import darkroom, data_folder
from tests.bot.apis.mcp.mcp_clients import http_address

__all__ = ["darkroom", "data_folder", "http_address"]
