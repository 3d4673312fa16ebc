"""Leader heartbeats in SQL: the leader counts up, and a standby watches the count to see whether it lives.

Never compares the clocks of two machines. Uses the store, not the lease.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket

from bot.app.watchdog_loop import boot_seconds
from bot.store import Store, leader_terms

HEARTBEAT_SECONDS = 1.0
DEAD_SECONDS = 2.5  # a leader without a heartbeat for so long is dead, or no longer leads
POLL_SECONDS = 0.25
PROOF_BEATS = 3  # heartbeats that prove a leader alive; a leader that has just lost its lease may write one more


def process_name() -> str:
    """Return this process's name among bots: machine, process id and a random word, since containers share process ids.

    It still fits into a lease's holder name when the store's id is appended.
    """
    machine = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname()[:20])
    return f"bot-{machine}-{os.getpid()}-{secrets.token_hex(2)}"


async def is_leader_alive(store: Store) -> bool:
    """Return whether a bot leads now. Raises `DatabaseUnavailable`."""
    term = await store.query(leader_terms.read_newest_term)
    beat_count = 0
    deadline = boot_seconds() + DEAD_SECONDS
    while not term.is_ended and boot_seconds() < deadline:
        await asyncio.sleep(POLL_SECONDS)
        newest = await store.query(leader_terms.read_newest_term)
        if newest != term:
            term = newest
            beat_count = beat_count + 1
            deadline = boot_seconds() + DEAD_SECONDS
        if beat_count == PROOF_BEATS:
            return True
    return False
