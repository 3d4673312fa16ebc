"""A card's picture as a discord.py file with alt text."""

from __future__ import annotations

import io

import discord

from bot.chat.delivery import PictureFile
from bot.chat.presenter import Card


def to_discord_file(card: Card, picture: PictureFile) -> discord.File:
    """Return the file of a message that shows `card`."""
    return discord.File(io.BytesIO(picture.payload), picture.name, description=card.alt or None)
