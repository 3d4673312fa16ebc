"""The fixtures of the tests of `darkroom mcp`."""

from __future__ import annotations

from tests.bot.apis.mcp.running_darkroom import darkroom, data_folder, http_address

__all__ = ["darkroom", "data_folder", "http_address"]
