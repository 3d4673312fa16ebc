"""The fixture of the Discord tests."""

from __future__ import annotations

from shared.discord_world import open_world

__all__ = ["open_world"]
