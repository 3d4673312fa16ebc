"""Archived charges: charges that outlive their jobs, so that deleting a job or a member's data restores no quota.

They are kept until no limit's window counts them. HMACs with a key of this database replace the ids of member, server
and channel; the key is deleted with the last charge. Each function works inside its caller's transaction.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, select

from bot.policy.limits import MONTH_SECONDS
from bot.store.schema.deletion_tables import archived_charges, charge_keys
from bot.store.schema.tables import jobs

IdHasher = Callable[[str, str], str]
KEY_BYTES = 32
MAX_WINDOW = MONTH_SECONDS  # the longest window of any limit
_SELECT_KEY = select(charge_keys.c.key)


def archive_charges(connection: Connection, ids: Sequence[str], now: float) -> None:
    """Archive these jobs' charges that still count. Call it once, when their rows are deleted."""
    query = select(jobs.c.member, jobs.c.guild, jobs.c.channel, jobs.c.created, jobs.c.charged)
    counted_query = query.where(jobs.c.id.in_(ids), jobs.c.charged > 0, jobs.c.created > now - MAX_WINDOW)
    charge_rows = connection.execute(counted_query).all()
    if not charge_rows:
        return
    hash_id = load_hasher(connection) or _create_hasher(connection)
    rows = [
        {
            "member": hash_id("member", row.member), "guild": hash_id("guild", row.guild),
            "channel": hash_id("channel", row.channel), "at": row.created, "charged": row.charged,
        }
        for row in charge_rows
    ]  # fmt: skip
    connection.execute(archived_charges.insert(), rows)


def load_hasher(connection: Connection) -> IdHasher | None:
    """Return the function (kind, id) → hash; None if no charge is archived."""
    key = connection.execute(_SELECT_KEY).scalar_one_or_none()
    return None if key is None else _make_hasher(bytes(key))


def _create_hasher(connection: Connection) -> IdHasher:
    key = secrets.token_bytes(KEY_BYTES)
    connection.execute(charge_keys.insert().values(id=1, key=key))
    return _make_hasher(key)


def _make_hasher(key: bytes) -> IdHasher:
    def hash_id(kind: str, text: str) -> str:
        return hmac.new(key, f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()

    return hash_id


def delete_old_charges(connection: Connection, now: float) -> None:
    """Delete charges that no limit counts any more, and the key with the last of them."""
    connection.execute(archived_charges.delete().where(archived_charges.c.at <= now - MAX_WINDOW))
    if connection.execute(select(archived_charges.c.id).limit(1)).first() is None:
        connection.execute(charge_keys.delete())
