"""The default mentions of every message: nobody is pinged."""

from __future__ import annotations

import discord

NO_MENTIONS = discord.AllowedMentions.none()
