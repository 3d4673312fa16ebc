"""API keys in SQL, under the hash of their secret. Each function works inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, or_, select, update

from bot.domain.dto import KeyScope
from bot.domain.feature import load_hooks
from bot.store.schema.tables import api_keys as table

KEY_MEMBER_PREFIX = "local:key:"  # of the member that a key acts as (`bot.web.middleware.member_of`)
REVOKED = "Its key was revoked."
KEY_ENDED = "Its key ended."
KEPT_SECONDS = 90 * 86_400.0  # a key that has ended is listed for so long


@dataclass(frozen=True)
class ApiKey:
    """What one program may do, and until when. Times are seconds since 1970; `expires` None: never.

    `used`: when it was last used, a minute old at most; None: never. `revoked`: when it was revoked.
    """

    name: str
    scopes: frozenset[KeyScope]
    issued: float
    expires: float | None = None
    used: float | None = None
    revoked: float | None = None

    @property
    def visitor(self) -> str:
        """The visitor of the chatroom that the key acts as. A new key of the same name is the same visitor."""
        return f"key:{self.name}"

    @property
    def member(self) -> str:
        """The member that the key acts as."""
        return f"{KEY_MEMBER_PREFIX}{self.name}"

    def is_valid(self, now: float) -> bool:
        """Return whether it opens anything now."""
        return self.revoked is None and (self.expires is None or self.expires > now)


def insert_key(connection: Connection, secret_hash: str, key: ApiKey) -> bool:
    """Store a new key; False, and nothing stored, while one of that name is valid. Drops keys that ended long ago.

    What features did for an older key of that name ends: it may have leaked.
    """
    long_ago = key.issued - KEPT_SECONDS
    connection.execute(table.delete().where(or_(table.c.revoked <= long_ago, table.c.expires <= long_ago)))
    is_taken = select(table.c.hash).where(table.c.name == key.name, is_valid(key.issued)).limit(1)
    if connection.execute(is_taken).first() is not None:
        return False
    _end_key(connection, key.name, key.issued, KEY_ENDED)
    values = {"name": key.name, "scopes": sorted(key.scopes), "issued": key.issued, "expires": key.expires}
    connection.execute(table.insert().values(hash=secret_hash, **values))
    return True


def get_key(connection: Connection, secret_hash: str, now: float) -> ApiKey | None:
    """Return a valid key, or None."""
    query = select(table).where(table.c.hash == secret_hash, is_valid(now))
    row = connection.execute(query).mappings().first()
    return None if row is None else _to_key(row)


def record_use(connection: Connection, secret_hash: str, now: float) -> None:
    """Record that the key is in use."""
    connection.execute(update(table).where(table.c.hash == secret_hash).values(used=now))


def list_keys(connection: Connection) -> Sequence[ApiKey]:
    """Return every key, the newest first."""
    query = select(table).order_by(table.c.issued.desc(), table.c.hash)
    return [_to_key(row) for row in connection.execute(query).mappings()]


def revoke_key(connection: Connection, name: str, now: float) -> bool:
    """Revoke the valid key of a name; False if there is none."""
    is_named = and_(table.c.name == name, is_valid(now))
    _end_key(connection, name, now, REVOKED)
    return connection.execute(update(table).where(is_named).values(revoked=now)).rowcount > 0


def _end_key(connection: Connection, name: str, now: float, reason: str) -> None:
    """Have every feature end what it does for a key, for `reason`, a sentence."""
    for end_key in load_hooks("end_key"):
        end_key(connection, name, now, reason)


def list_notes(connection: Connection, name: str) -> list[str]:
    """Return what features say of a key that ended or was replaced."""
    return [note for describe_key in load_hooks("describe_key") for note in describe_key(connection, name)]


def is_valid(now: float) -> ColumnElement[bool]:
    """Return the condition that a key is valid now."""
    return and_(table.c.revoked.is_(None), or_(table.c.expires.is_(None), table.c.expires > now))


def _to_key(row: RowMapping) -> ApiKey:
    values: dict[str, Any] = {name: row[name] for name in ("name", "issued", "expires", "used", "revoked")}
    return ApiKey(scopes=frozenset(row["scopes"]), **values)
