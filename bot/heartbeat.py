"""Whether the bot that began the newest term lives: it counts in SQL, and whoever would be next watches the count.

No clock of one machine is held against another's. Knows the store; nothing of leases.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket

from bot.store import Store, terms
from bot.turns import now

BEAT_SECONDS = 1.0
HEARD_SECONDS = 2.5  # more than that: without a beat for so long it is dead, or leads no more
GLANCE_SECONDS = 0.25
BEATS = 3  # of one that lives; one that has just lost its lease may still be in the middle of its last


def here() -> str:
    """This process among bots: its machine and its number, and a word, for in containers all have the same number.

    With the store's id behind it, it is no longer than a lease's holder may be.
    """
    machine = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname()[:20])
    return f"bot-{machine}-{os.getpid()}-{secrets.token_hex(2)}"


async def heard(store: Store) -> bool:
    """Whether some bot leads now. Raises `Unavailable`."""
    seen, beats = await store.ask(terms.newest), 0
    until = now() + HEARD_SECONDS
    while not seen.over and now() < until:
        await asyncio.sleep(GLANCE_SECONDS)
        found = await store.ask(terms.newest)
        if found != seen:
            seen, beats, until = found, beats + 1, now() + HEARD_SECONDS
        if beats == BEATS:
            return True
    return False
