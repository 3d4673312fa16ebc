"""`darkroom mcp`: lets an assistant draw with a running Darkroom, by the Model Context Protocol."""

from __future__ import annotations

from bot.domain.feature import Feature

FEATURE = Feature(title="Model Context Protocol")
