"""Search for a message of ours whose id a crash lost between sending and recording.

Knows channels and the ids of our buttons; knows nothing of destinations or of when to search.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import discord

NEWEST = 50  # of a channel's newest messages, searched first
THERE = 1000  # messages searched from the earliest time on at which ours may have come
MARGIN = 300.0  # seconds by which our clock may be ahead of Discord's


async def find(
    channel: discord.PartialMessageable, us: discord.ClientUser | None, job: str, since: float, *, posted: bool
) -> int | None:
    """Return our message about `job`: one `posted` on its own, or a response; None if there is none.

    It is among the first messages after `since` (seconds since 1970, 0: unknown), however many others came later.
    Raises discord.py's errors.
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
    """Return the jobs that a message's buttons are about."""
    found: set[str] = set()
    for one in components:
        found |= jobs(one.get("components") or ())
        found.update(str(one.get("custom_id") or "").split(":")[1:2])
    return found
