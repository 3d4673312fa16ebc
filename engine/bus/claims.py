"""Claims: the right of one worker to run a job, or of one bot to work, as a key-value entry that lives for one lease.

The entry's creating revision is the epoch, a fencing token. A renewal changes the key's revision while the epoch must
stay, so renewals write the creating revision into the value.

An unreadable entry belongs to nobody. Its former holder has lost the claim: another worker may have held it meanwhile.
A new holder updates exactly the revision it read, so only one succeeds, with a newer epoch.
"""

from __future__ import annotations

import asyncio
import math
from base64 import b64decode
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import msgspec
from nats.js import JetStreamContext
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError
from nats.js.kv import KV_DEL, KV_OP, KeyValue

from engine.bus import subjects
from engine.bus.connection import has_reply_header, translate_errors
from engine.contract import Epoch, MalformedMessage, Name, decode, encode

MAX_TRIES = 3  # renewals are seconds apart: one between our read and write is rare, three never happen
WRONG_LAST_SEQUENCE = {10071, 10164}  # the two error codes of nats-server's JSStreamWrongLastSequence*


class StaleEpoch(Exception):
    """A worker with a newer epoch runs the job: stop, and publish nothing."""


class ClaimHolder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A claim's value. `epoch` 0, as at its creation, means the entry's own revision."""

    worker: Name
    epoch: Epoch = 0


@dataclass
class Claim:
    """A held claim. `revision` changes with every renewal, `epoch` never."""

    job: str
    worker: str
    epoch: int
    revision: int


class Claims:
    def __init__(self, bucket: KeyValue) -> None:
        self._bucket = bucket

    async def acquire(self, job: str, worker: str) -> Claim | None:
        """Create the claim; None while another one lives, our own earlier one included."""
        value = encode(ClaimHolder(worker=worker))
        with suppress(KeyWrongLastSequenceError, KeyNotFoundError):  # not found: it lapsed between two requests
            try:
                revision = await self._bucket.create(job, value)
            except KeyWrongLastSequenceError:
                if (unreadable_revision := await self._find_unreadable(job)) is None:
                    return None
                revision = await self._bucket.update(job, value, last=unreadable_revision)
            return Claim(job, worker, revision, revision)
        return None

    async def _find_unreadable(self, job: str) -> int | None:
        entry = await self._bucket.get(job)
        try:
            decode(entry.value or b"", ClaimHolder)
        except MalformedMessage:
            return entry.revision
        return None

    async def get_holder(self, job: str) -> ClaimHolder | None:
        """Return who runs the job, with the epoch filled in; None when nobody does."""
        try:
            entry = await self._bucket.get(job)
            value = decode(entry.value or b"", ClaimHolder)
        except (KeyNotFoundError, MalformedMessage):
            return None
        return ClaimHolder(worker=value.worker, epoch=value.epoch or entry.revision or 0)

    async def renew(self, claim: Claim) -> bool:
        """Extend the claim by one lease. False: it is lost for good."""
        value = encode(ClaimHolder(worker=claim.worker, epoch=claim.epoch))
        for _ in range(2):
            try:
                claim.revision = await self._bucket.update(claim.job, value, last=claim.revision)
                return True
            except KeyWrongLastSequenceError:
                if not await self._is_still_ours(claim):
                    return False
        return False

    async def _is_still_ours(self, claim: Claim) -> bool:
        """Whether the entry has our epoch. After a renewal whose reply got lost, only the revision has changed."""
        try:
            entry = await self._bucket.get(claim.job)
            value = decode(entry.value or b"", ClaimHolder)
        except (KeyNotFoundError, MalformedMessage):
            return False
        if (value.epoch or entry.revision) != claim.epoch or entry.revision is None:
            return False
        claim.revision = entry.revision
        return True

    async def release(self, claim: Claim) -> None:
        """Delete the claim, unless it was lost already."""
        for _ in range(MAX_TRIES):
            with suppress(KeyWrongLastSequenceError):  # changed in between: renew again, or learn of the loss
                if await self.renew(claim):
                    await self._delete(claim.job, claim.revision)
                return

    async def revoke(self, job: str, epoch: int) -> bool:
        """Delete the claim of this epoch. False: there is none, or it has another epoch."""
        for _ in range(MAX_TRIES):
            with suppress(KeyWrongLastSequenceError):  # renewed in between
                try:
                    entry = await self._bucket.get(job)
                    value = decode(entry.value or b"", ClaimHolder)
                except (KeyNotFoundError, MalformedMessage):
                    return False
                if (value.epoch or entry.revision) != epoch:
                    return False
                await self._delete(job, entry.revision)
                return True
        return False

    async def _delete(self, job: str, revision: int | None) -> None:
        """Raise `KeyWrongLastSequenceError` like the bucket's update; its delete raises a bare `APIError`."""
        try:
            await self._bucket.delete(job, last=revision)
        except APIError as error:
            if error.err_code in WRONG_LAST_SEQUENCE:
                raise KeyWrongLastSequenceError(description=error.description) from error
            raise


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
