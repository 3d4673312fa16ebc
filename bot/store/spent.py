"""Archived charges: charges that outlive their jobs, so that deleting a job or a member's data restores no quota.

Kept until no limit's window counts them. HMACs with a key of this database replace the ids of member, server and
channel; the key is deleted with the last charge. Each function works inside its caller's transaction.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, select

from bot.limits import MONTH
from bot.store.tables import jobs
from bot.store.traces import spent, veil

Veil = Callable[[str, str], str]
KEY_BYTES = 32
LONGEST = MONTH  # the longest window of any limit
_KEY = select(veil.c.key)


def keep(connection: Connection, ids: Sequence[str], now: float) -> None:
    """Archive these jobs' charges that still count. Call it once, when their rows are deleted."""
    asked = select(jobs.c.member, jobs.c.guild, jobs.c.channel, jobs.c.created, jobs.c.charged)
    counted = asked.where(jobs.c.id.in_(ids), jobs.c.charged > 0, jobs.c.created > now - LONGEST)
    found = connection.execute(counted).all()
    if not found:
        return
    hidden = veiled(connection) or _made(connection)
    rows = [
        {
            "member": hidden("member", row.member), "guild": hidden("guild", row.guild),
            "channel": hidden("channel", row.channel), "at": row.created, "charged": row.charged,
        }
        for row in found
    ]  # fmt: skip
    connection.execute(spent.insert(), rows)


def veiled(connection: Connection) -> Veil | None:
    """Return the function (kind, id) → hash; None if no charge is archived."""
    key = connection.execute(_KEY).scalar_one_or_none()
    return None if key is None else _veil(bytes(key))


def _made(connection: Connection) -> Veil:
    key = secrets.token_bytes(KEY_BYTES)
    connection.execute(veil.insert().values(id=1, key=key))
    return _veil(key)


def _veil(key: bytes) -> Veil:
    def hidden(kind: str, text: str) -> str:
        return hmac.new(key, f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()

    return hidden


def lapse(connection: Connection, now: float) -> None:
    """Delete charges that no limit counts any more, and the key with the last of them."""
    connection.execute(spent.delete().where(spent.c.at <= now - LONGEST))
    if connection.execute(select(spent.c.id).limit(1)).first() is None:
        connection.execute(veil.delete())
