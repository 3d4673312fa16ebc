"""Archived charges: charges that outlive their jobs, so that deleting a job or a member's data restores no quota;
and charges for work that is no job. What relaxed jobs took is archived under ids of its own: no other limit counts it.

They are kept until no limit's window counts them. HMACs with a key of this database replace the ids of member, server
and channel; the key is deleted with the last charge. Each function works inside its caller's transaction.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, and_, or_, select

from bot.policy.limits import MONTH_SECONDS
from bot.store.jobs.records import RELAXED_TIER
from bot.store.schema.deletion_tables import archived_charges, charge_keys
from bot.store.schema.tables import jobs

IdHasher = Callable[[str, str], str]
KEY_BYTES = 32
RELAXED_PREFIX = "relaxed "  # before the kind of an id
MAX_WINDOW = MONTH_SECONDS  # the longest window of any limit
_SELECT_KEY = select(charge_keys.c.key)


def archive_charges(connection: Connection, ids: Sequence[str], now: float) -> None:
    """Archive these jobs' charges that still count. Call it once, when their rows are deleted."""
    is_counted = or_(jobs.c.charged > 0, and_(jobs.c.tier == RELAXED_TIER, jobs.c.billed > 0))
    counted_query = select(jobs).where(jobs.c.id.in_(ids), is_counted, jobs.c.created > now - MAX_WINDOW)
    charge_rows = connection.execute(counted_query).all()
    if not charge_rows:
        return
    hash_id = load_hasher(connection) or create_hasher(connection)
    rows = list[dict[str, object]]()
    for row in charge_rows:
        is_relaxed = row.tier == RELAXED_TIER
        prefix = RELAXED_PREFIX if is_relaxed else ""
        ids_by_kind = {"member": row.member, "guild": row.guild, "channel": row.channel}
        hashes = {kind: hash_id(prefix + kind, text) for kind, text in ids_by_kind.items()}
        rows.append({**hashes, "at": row.created, "charged": row.billed if is_relaxed else row.charged})
    connection.execute(archived_charges.insert(), rows)


def load_hasher(connection: Connection) -> IdHasher | None:
    """Return the function (kind, id) → hash; None if no charge is archived."""
    key = connection.execute(_SELECT_KEY).scalar_one_or_none()
    return None if key is None else _make_hasher(bytes(key))


def create_hasher(connection: Connection) -> IdHasher:
    """Write a new key; return its function (kind, id) → hash."""
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
