"""The leader lease of the bots on one broker: one holds it and works, the others stand by.

Its claim is hardened against entries that a worker can make the broker write into the bots' bucket.
"""

from __future__ import annotations

import asyncio
import math
from base64 import b64decode
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from nats.js import JetStreamContext
from nats.js.errors import KeyWrongLastSequenceError, NotFoundError
from nats.js.kv import KV_DEL, KV_OP, KeyValue

from engine.bus import subjects
from engine.bus.buckets.claims import MAX_TRIES, Claim, ClaimHolder, Claims
from engine.bus.connection import translate_errors
from engine.bus.hardened_client import has_reply_header
from engine.contract import MalformedMessage, decode, encode

LEASE_KEY = "bot"


def open_leader_lease(js: JetStreamContext, seconds: float) -> LeaderLease:
    """Return the leader lease of the bots on one broker."""
    return LeaderLease(LeaderClaims(js, seconds), seconds)


class LeaderLease:
    """The lease. Every method raises `BrokerUnreachable` while the broker is away."""

    def __init__(self, claims: Claims, seconds: float) -> None:
        self._claims = claims
        self.seconds = seconds

    async def acquire(self, name: str) -> Claim | None:
        """Acquire the lease; None while another bot holds it."""
        with translate_errors("acquire the leader lease"):
            return await self._claims.acquire(LEASE_KEY, name)

    async def renew(self, claim: Claim) -> bool:
        """Extend the lease by `seconds`. False: it is lost."""
        with translate_errors("renew the leader lease"):
            return await self._claims.renew(claim)

    async def release(self, claim: Claim) -> None:
        """Release the lease, so that a standby need not wait until it expires."""
        with translate_errors("release the leader lease"):
            await self._claims.release(claim)

    async def get_holder(self) -> ClaimHolder | None:
        """Return the holder; None where there is none."""
        with translate_errors("look up the leader"):
            return await self._claims.get_holder(LEASE_KEY)


class LeaderClaims(Claims):
    """Claims whose entries may be forged, since a worker key can redirect a broker reply to this bucket.

    Such a reply may look like a holder or a tombstone. Only the stored message has the headers of a reply, so entries
    are not read by direct get.

    A forged entry hides the leader but does not depose it: the leader overwrites the entry at its next renewal. So a
    standby waits until nobody has overwritten it for `seconds`.
    """

    def __init__(self, js: JetStreamContext, seconds: float) -> None:
        stream = subjects.kv_stream(subjects.LEADERS)
        prefix = subjects.kv_subject(subjects.LEADERS, "")
        super().__init__(KeyValue(subjects.LEADERS, stream, prefix, js, direct=False))
        self._js = js
        self._stream = stream
        self._prefix = prefix
        self._seconds = seconds
        self._wait_until = math.inf  # until then a forged entry may hide a leader; inf before the first look

    async def acquire(self, job: str, worker: str) -> Claim | None:
        for _ in range(MAX_TRIES):
            entry = await self._read_entry(job)
            if not self._can_acquire(entry):
                return None
            with suppress(KeyWrongLastSequenceError):
                revision = await self._bucket.update(job, encode(ClaimHolder(worker=worker)), last=entry.revision)
                self._wait_until = -math.inf
                return Claim(job, worker, revision, revision)
        return None

    def _can_acquire(self, entry: LeaderEntry) -> bool:
        now = asyncio.get_running_loop().time()
        if entry.holder is not None or (not entry.is_free and self._wait_until == math.inf):
            self._wait_until = now + self._seconds
        return entry.holder is None and (entry.is_free or now >= self._wait_until)

    async def get_holder(self, job: str) -> ClaimHolder | None:
        return (await self._read_entry(job)).holder

    async def _is_still_ours(self, claim: Claim) -> bool:
        entry = await self._read_entry(claim.job)
        if entry.holder is None or entry.holder.epoch != claim.epoch:
            return False
        claim.revision = entry.revision
        return True

    async def _read_entry(self, key: str) -> LeaderEntry:
        try:
            message = await self._js.get_msg(self._stream, subject=f"{self._prefix}{key}")
        except NotFoundError:
            return LeaderEntry()
        revision = message.seq or 0
        if has_reply_header(b64decode(message.hdrs or "")):
            return LeaderEntry(revision, is_free=False)
        if cast(dict[str, str], message.headers or {}).get(KV_OP) == KV_DEL:
            return LeaderEntry(revision)
        try:
            holder = decode(message.data or b"", ClaimHolder)
        except MalformedMessage:
            return LeaderEntry(revision, is_free=False)
        return LeaderEntry(revision, ClaimHolder(worker=holder.worker, epoch=holder.epoch or revision))


@dataclass(frozen=True)
class LeaderEntry:
    """The entry at the key. `holder`: None if nobody holds it. `is_free`: missing or released, not overwritten."""

    revision: int = 0
    holder: ClaimHolder | None = None
    is_free: bool = True
