"""Deletes the messages of a member who asked to be forgotten, one by one, as the desk requests.

Tells the messages that Discord never lets us delete from those that only have to wait.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import aiohttp
import discord

from bot.chat.presses.removal import deletion_routes

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.views import Delivery

log = logging.getLogger(__name__)


async def delete_forgotten_message(client: DarkroomClient, job: str, delivery: Delivery) -> bool:
    """Delete one message; return False if Discord does not let us. Raises `ConnectionError` if it is unreachable."""
    for route in deletion_routes(delivery):
        try:
            await client.http.request(route)
        except discord.NotFound as error:
            if error.code == 10008:  # deleted already
                return True
            log.info("job %s: %s", job, error)
        except (discord.DiscordServerError, discord.RateLimited, aiohttp.ClientError, OSError, RuntimeError) as error:
            raise ConnectionError(f"Discord cannot be reached: {error}") from error  # RuntimeError: session closed
        except discord.HTTPException as error:
            log.info("job %s: its message stays: %s", job, error)
        else:
            return True
    return False
