"""Claims: the right of one worker to run a job, as a key-value entry that lives for one lease.

The entry's creating revision is the epoch, a fencing token. A renewal changes the key's revision while the epoch must
stay, so renewals write the creating revision into the value.

An unreadable entry belongs to nobody. Its former holder has lost the claim: another worker may have held it meanwhile.
A new holder updates exactly the revision it read, so only one succeeds, with a newer epoch.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import msgspec
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

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
        """Return the revision of an unreadable entry; None where the entry is readable."""
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
