"""The default mentions of every message: nobody is pinged."""

from __future__ import annotations

import discord

QUIET = discord.AllowedMentions.none()
