"""Visitors' sessions in SQL, under the hash of their cookie. Each function works inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy import Connection, RowMapping, select, update

from bot.store.schema.tables import sessions as table

SessionKind = Literal["open", "guest", "operator"]
MAX_OPEN_SESSIONS = 1000  # an open room gives one to every browser; with more, the one that was unused longest ends


@dataclass(frozen=True)
class VisitorSession:
    """What one browser may do, and until when. `kind`: `open` for any visitor of an open room, `guest` by an
    invitation, `operator`. Times are seconds since 1970; `used` may be a minute old.
    """

    visitor: str
    kind: SessionKind
    issued: float
    expires: float
    used: float


def insert_session(connection: Connection, cookie_hash: str, session: VisitorSession) -> None:
    """Store a new session. Delete those that have expired, and open ones beyond `MAX_OPEN_SESSIONS`."""
    connection.execute(table.delete().where(table.c.expires <= session.issued))
    connection.execute(table.insert().values(hash=cookie_hash, **asdict(session)))
    if session.kind == "open":
        by_use = select(table.c.hash).where(table.c.kind == "open").order_by(table.c.used.desc(), table.c.hash)
        surplus = connection.execute(by_use.offset(MAX_OPEN_SESSIONS).limit(MAX_OPEN_SESSIONS)).scalars().all()
        connection.execute(table.delete().where(table.c.hash.in_(surplus)))


def get_session(connection: Connection, cookie_hash: str, now: float) -> VisitorSession | None:
    """Return a session that has not expired, or None."""
    query = select(table).where(table.c.hash == cookie_hash, table.c.expires > now)
    row = connection.execute(query).mappings().first()
    return None if row is None else _to_session(row)


def record_use(connection: Connection, cookie_hash: str, now: float) -> None:
    """Record that the session is in use."""
    connection.execute(update(table).where(table.c.hash == cookie_hash).values(used=now))


def list_sessions(connection: Connection, now: float) -> list[VisitorSession]:
    """Return the sessions that have not expired, the last used first."""
    query = select(table).where(table.c.expires > now).order_by(table.c.used.desc(), table.c.hash)
    return [_to_session(row) for row in connection.execute(query).mappings()]


def delete_session(connection: Connection, cookie_hash: str) -> int:
    """End one session; return how many ended."""
    return connection.execute(table.delete().where(table.c.hash == cookie_hash)).rowcount


def delete_visitors_sessions(connection: Connection, visitors: Sequence[str]) -> int:
    """End all sessions of these visitors; return how many ended."""
    return connection.execute(table.delete().where(table.c.visitor.in_(visitors))).rowcount


def delete_operator_sessions(connection: Connection) -> int:
    """End all sessions of the operator, in every browser; return how many ended."""
    return connection.execute(table.delete().where(table.c.kind == "operator")).rowcount


def delete_all_sessions(connection: Connection) -> int:
    """End every session; return how many ended."""
    return connection.execute(table.delete()).rowcount


def _to_session(row: RowMapping) -> VisitorSession:
    return VisitorSession(row["visitor"], row["kind"], row["issued"], row["expires"], row["used"])
