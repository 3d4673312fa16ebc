"""API keys: made once for a program, read by every request, ended by time or a revocation.

The secret has 256 random bits, so nobody can guess it: its hash may be fast. The store has nothing but that hash.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace

from bot.domain.dto import KeyScope
from bot.domain.errors import UserError
from bot.policy.permissions import KEY_SCOPES
from bot.store import DatabaseUnavailable, NotLeader, Store
from bot.store.members import api_keys as stored
from bot.store.members.api_keys import ApiKey

PREFIX = "dkr_"  # programs that look for leaked secrets know ours by it
SECRET_BYTES = 32  # random bytes
SECRET_PATTERN = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")  # of so many bytes
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
TAKEN = "There is a key {} already: revoke it first, or choose another name."
USE_SECONDS = 60  # the last use is written at most so often


class ApiKeys:
    """Makes, finds, lists and revokes keys."""

    def __init__(self, store: Store, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def prepare(self, name: str, scopes: Collection[str], seconds: float | None = None) -> ApiKey:
        """Return a key to add, valid for so many seconds or for ever.

        Raises `UserError` for a bad name or scope, and while a key of this name is valid.
        """
        now = self._clock()
        key = ApiKey(_check_name(name), _parse_scopes(scopes), now, None if seconds is None else now + seconds)
        if any(other.name == name and other.is_valid(now) for other in await self.list_all()):
            raise UserError(TAKEN.format(name))
        return key

    async def add(self, key: ApiKey) -> str:
        """Store a new key; return its secret, which is kept nowhere. Raises `UserError` if its name is taken."""
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        if not await self._store.write(stored.insert_key, _hash_secret(secret), key):
            raise UserError(TAKEN.format(key.name))
        return secret

    async def find(self, secret: str) -> ApiKey | None:
        """Return the key of a secret, or None if there is none, it has expired or was revoked. Records its use."""
        if not SECRET_PATTERN.fullmatch(secret):
            return None
        secret_hash = _hash_secret(secret)
        now = self._clock()
        key = await self._store.query(stored.get_key, secret_hash, now)
        if key is not None and (key.used is None or now - key.used >= USE_SECONDS):
            with suppress(DatabaseUnavailable, NotLeader):  # the next request tries again
                await self._store.write(stored.record_use, secret_hash, now)
                key = replace(key, used=now)
        return key

    async def list_all(self) -> list[ApiKey]:
        """Return every key, the newest first; those that ended long ago are gone."""
        return list(await self._store.query(stored.list_keys))

    async def list_notes(self, name: str) -> list[str]:
        """Return what features say of a key that ended or was replaced."""
        return await self._store.query(stored.list_notes, name)

    async def revoke(self, name: str) -> None:
        """Revoke a key: its next request is refused, and features end what they do for it.

        Raises `UserError` (404) if none of this name is valid.
        """
        if not await self._store.write(stored.revoke_key, name, self._clock()):
            raise UserError(f"There is no valid key {name[:40]!r}: `darkroom api-key --list`.", 404)


def _check_name(name: str) -> str:
    """Return the name of a key. Raises `UserError` (422)."""
    if not NAME_PATTERN.fullmatch(name):
        raise UserError("A key's name has 1 to 32 small letters, digits and hyphens, and begins with no hyphen.")
    return name


def _parse_scopes(scopes: Collection[str]) -> frozenset[KeyScope]:
    unknown = sorted(set(scopes) - set(KEY_SCOPES))
    if unknown or not scopes:
        problem = f"There is no scope {unknown[0][:40]!r}" if unknown else "A key needs a scope"
        raise UserError(f"{problem}: there are {', '.join(KEY_SCOPES)}.")
    return frozenset(scopes)


def _hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
