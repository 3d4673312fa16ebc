"""Leader heartbeats in SQL: the leader counts up, and a standby watches the count to see whether it lives.

Never compares the clocks of two machines. Uses the store, not the lease.
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
HEARD_SECONDS = 2.5  # a leader without a heartbeat for so long is dead, or leads no more
GLANCE_SECONDS = 0.25
BEATS = 3  # that prove a leader alive; one that just lost its lease may still write its last


def here() -> str:
    """Return this process's name among bots: machine, process id and a random word, since containers share process ids.

    With the store's id appended it still fits into a lease's holder name.
    """
    machine = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname()[:20])
    return f"bot-{machine}-{os.getpid()}-{secrets.token_hex(2)}"


async def heard(store: Store) -> bool:
    """Return whether a bot leads now. Raises `Unavailable`."""
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
