"""Searches for a message of the bot whose id a crash lost between sending and recording.

Knows channels and the ids of our buttons; knows nothing of destinations or of when to search.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import discord

NEWEST_LIMIT = 50  # of a channel's newest messages, searched first
SEARCH_LIMIT = 1000  # messages searched, from the earliest time at which ours may have been sent
CLOCK_MARGIN = 300.0  # seconds by which our clock may be ahead of Discord's


async def find_message(
    channel: discord.PartialMessageable,
    bot_user: discord.ClientUser | None,
    job: str,
    since: float,
    *,
    standalone: bool,
) -> int | None:
    """Return the bot's message about `job`: a `standalone` message, or a response; None if there is none.

    It is among the first messages after `since` (seconds since 1970, 0: unknown), however many follow. Raises
    discord.py's errors.
    """
    histories = [channel.history(limit=NEWEST_LIMIT)]
    if since:
        after = datetime.fromtimestamp(since - CLOCK_MARGIN, UTC)
        histories.append(channel.history(limit=SEARCH_LIMIT, after=after, oldest_first=True))
    for history in histories:
        async for message in history:
            is_standalone = message.interaction_metadata is None
            if (
                message.author == bot_user
                and is_standalone == standalone
                and job in jobs_of_buttons(row.to_dict() for row in message.components)
            ):
                return message.id
    return None


def jobs_of_buttons(components: Iterable[Any]) -> set[str]:
    """Return the jobs that a message's buttons are about."""
    job_ids: set[str] = set()
    for component in components:
        job_ids |= jobs_of_buttons(component.get("components") or ())
        job_ids.update(str(component.get("custom_id") or "").split(":")[1:2])
    return job_ids
