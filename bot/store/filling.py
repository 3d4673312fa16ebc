"""Fills the queue with many waiting jobs of many members, for `darkroom bench queue`.

Written in bulk: to admit 100,000 jobs one by one would take minutes. It writes what a pick reads, jobs and their
accounts, but no destinations and no audit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Table
from ulid import ULID

from bot.fair import parent, paths
from bot.store.records import Draft
from bot.store.tables import accounts, jobs
from engine.job import Share

TOGETHER = 2000  # rows per statement
USERS_OF_A_GUILD = 100


def fill(connection: Connection, draft: Draft, count: int, users: int) -> None:
    """Insert `count` jobs like the draft, by `users` members in turn, whose accounts have random virtual times."""
    draws = random.Random(1)
    shares = [Share(draft.member.tier, f"guild-{n // USERS_OF_A_GUILD}", f"user-{n}") for n in range(users)]
    queued: dict[str, int] = {}
    for number in range(count):
        for path in paths(draft.pool, shares[number % users]):
            queued[path] = queued.get(path, 0) + 1
    _insert(connection, accounts, (_account(path, waiting, draft, draws) for path, waiting in queued.items()))
    _insert(connection, jobs, (_job(draft, shares[number % users], number) for number in range(count)))
    if connection.dialect.name == "postgresql":  # autovacuum would run it within a minute
        connection.exec_driver_sql("ANALYZE")


def _account(path: str, queued: int, draft: Draft, draws: random.Random) -> dict[str, Any]:
    user = path.count("/") == 3
    return {
        "path": path, "parent": parent(path), "virtual": draws.random() * draft.cost, "floor": 0.0, "weight": 1.0,
        "queued": queued, "active": 0, "since": draft.created - draws.random() if user else None,
    }  # fmt: skip


def _job(draft: Draft, share: Share, number: int) -> dict[str, Any]:
    account = paths(draft.pool, share)[-1]
    values = draft.values(None, number)
    return values | {"id": str(ULID()), "member": share.user, "guild": share.guild, "account": account}


def _insert(connection: Connection, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    while page := list(islice(rows, TOGETHER)):
        connection.execute(table.insert(), page)
