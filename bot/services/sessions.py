"""Visitors' sessions: an entrance starts one, every request reads it, and time, a sign-out or a revocation ends it.

The cookie is random and means nothing in itself: the store has its hash, and what it stands for.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType

from bot.store import DatabaseUnavailable, NotLeader, Store
from bot.store.members import sessions as stored
from bot.store.members.sessions import SessionKind, VisitorSession

DAY_SECONDS = 24 * 3600
SESSION_DAYS: Mapping[SessionKind, int] = MappingProxyType({"open": 365, "guest": 90, "operator": 30})
USE_SECONDS = 60  # the last use is written at most so often
COOKIE_BYTES = 32  # random bytes
COOKIE_PATTERN = re.compile(r"[A-Za-z0-9_-]{43}")  # of so many bytes


class Sessions:
    """Starts, finds and ends sessions."""

    def __init__(self, store: Store, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def start(self, kind: SessionKind, visitor: str) -> tuple[str, VisitorSession]:
        """Start a session of this visitor; return its cookie, and the session."""
        cookie = secrets.token_urlsafe(COOKIE_BYTES)
        now = self._clock()
        session = VisitorSession(visitor, kind, now, now + SESSION_DAYS[kind] * DAY_SECONDS, now)
        await self._store.write(stored.insert_session, _hash_cookie(cookie), session)
        return cookie, session

    async def find(self, cookie: str) -> VisitorSession | None:
        """Return the session of a cookie, or None if there is none, it has expired or was ended. Records its use."""
        if not COOKIE_PATTERN.fullmatch(cookie):
            return None
        cookie_hash = _hash_cookie(cookie)
        now = self._clock()
        session = await self._store.query(stored.get_session, cookie_hash, now)
        if session is not None and now - session.used >= USE_SECONDS:
            with suppress(DatabaseUnavailable, NotLeader):  # the next request tries again
                await self._store.write(stored.record_use, cookie_hash, now)
        return session

    async def end(self, cookie: str) -> None:
        """End the session of a cookie, if there is one."""
        if COOKIE_PATTERN.fullmatch(cookie):
            await self._store.write(stored.delete_session, _hash_cookie(cookie))

    async def end_everywhere(self, session: VisitorSession) -> None:
        """End the sessions of this visitor in every browser; the operator's are those of kind `operator`."""
        if session.kind == "operator":
            await self._store.write(stored.delete_operator_sessions)
        await self._store.write(stored.delete_visitors_sessions, [session.visitor])


def _hash_cookie(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()
