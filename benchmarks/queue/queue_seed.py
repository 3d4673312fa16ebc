"""Fills the queue with many waiting jobs of many members, for `darkroom bench queue`.

It inserts in bulk: to admit 100,000 jobs one by one would take minutes. It writes what a pick reads, jobs and their
accounts, but no destinations and no audit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Table
from ulid import ULID

from bot.policy.fair_queue import account_paths, parent_path
from bot.store.jobs.records import NewJob
from bot.store.schema.tables import accounts, jobs
from engine.contract import BillingKey

ROWS_PER_STATEMENT = 2000  # rows per statement
USERS_PER_GUILD = 100


def seed_queue(connection: Connection, template: NewJob, count: int, users: int) -> None:
    """Insert `count` jobs like `template`, by `users` members in turn, whose accounts have random virtual times."""
    rng = random.Random(1)
    billing_keys = [
        BillingKey(template.member.tier, f"guild-{index // USERS_PER_GUILD}", f"user-{index}") for index in range(users)
    ]
    queued_by_path: dict[str, int] = {}
    for number in range(count):
        for path in account_paths(template.pool, billing_keys[number % users]):
            queued_by_path[path] = queued_by_path.get(path, 0) + 1
    _insert_rows(
        connection,
        accounts,
        (_account_row(path, queued_jobs, template, rng) for path, queued_jobs in queued_by_path.items()),
    )
    _insert_rows(
        connection, jobs, (_job_row(template, billing_keys[number % users], number) for number in range(count))
    )
    if connection.dialect.name == "postgresql":  # autovacuum would run it within a minute
        connection.exec_driver_sql("ANALYZE")


def _account_row(path: str, queued: int, template: NewJob, rng: random.Random) -> dict[str, Any]:
    is_user = path.count("/") == 3
    return {
        "path": path,
        "parent": parent_path(path),
        "virtual": rng.random() * template.cost,
        "floor": 0.0,
        "weight": 1.0,
        "queued": queued,
        "active": 0,
        "since": template.created - rng.random() if is_user else None,
    }


def _job_row(template: NewJob, billing_key: BillingKey, number: int) -> dict[str, Any]:
    account = account_paths(template.pool, billing_key)[-1]
    values = template.to_row(None, number)
    return values | {"id": str(ULID()), "member": billing_key.user, "guild": billing_key.guild, "account": account}


def _insert_rows(connection: Connection, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    while chunk := list(islice(rows, ROWS_PER_STATEMENT)):
        connection.execute(table.insert(), chunk)
