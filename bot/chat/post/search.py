"""Finds a message of ours again that was sent, while we did not live to note its id.

Knows channels and the ids of our buttons; knows nothing of places or of when one looks.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import discord

NEWEST = 50  # of a channel's newest messages looked through first
THERE = 1000  # and of those since the message may have come
MARGIN = 300.0  # seconds by which our clock may be ahead of Discord's


async def find(
    channel: discord.PartialMessageable, us: discord.ClientUser | None, job: str, since: float, *, posted: bool
) -> int | None:
    """Our message about `job`: one that was `posted` by itself, or an answer; None where there is none.

    However many others wrote meanwhile: it is among the first after `since` (0: not known, seconds since 1970). Raises
    the library's errors.
    """
    looks = [channel.history(limit=NEWEST)]
    if since:
        after = datetime.fromtimestamp(since - MARGIN, UTC)
        looks.append(channel.history(limit=THERE, after=after, oldest_first=True))
    for look in looks:
        async for message in look:
            by_itself = message.interaction_metadata is None
            if (
                message.author == us
                and by_itself == posted
                and job in jobs(row.to_dict() for row in message.components)
            ):
                return message.id
    return None


def jobs(components: Iterable[Any]) -> set[str]:
    """The jobs that a message's buttons are about."""
    found: set[str] = set()
    for one in components:
        found |= jobs(one.get("components") or ())
        found.update(str(one.get("custom_id") or "").split(":")[1:2])
    return found
