"""Nobody is pinged by what the bot sends: the default of every message, and the one word for it."""

from __future__ import annotations

import discord

QUIET = discord.AllowedMentions.none()
