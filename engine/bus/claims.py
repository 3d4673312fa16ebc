"""Claims: which worker runs a job. A key whose entry lives for one lease; its creating revision is the epoch.

Knows creating, renewing and releasing a claim; nothing of what is done under it. A renewal changes the key's revision,
while the epoch must stay: so renewals write the creating revision into the value.

An entry that cannot be read is nobody's. Who had the claim before has lost it, for somebody else may have had it since;
whoever takes it writes over the entry as it was, so only one does, and under a newer epoch.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import msgspec
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from engine.job import Epoch, Malformed, Name, decode, encode

TRIES = 3  # a claim is renewed every few seconds: twice between our look and our write is rare, three times unheard of
WRONG_LAST_SEQUENCE = {10071, 10164}  # the two error codes of nats-server's JSStreamWrongLastSequence*


class Fenced(Exception):
    """Somebody with a newer epoch runs the job: stop, and publish nothing."""


class Holder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A claim's value. `epoch` 0, as at its creation, means the entry's own revision."""

    worker: Name
    epoch: Epoch = 0


@dataclass
class Claim:
    """A held claim; `revision` moves with every renewal, `epoch` never."""

    job: str
    worker: str
    epoch: int
    revision: int


class Claims:
    """The claims bucket."""

    def __init__(self, bucket: KeyValue) -> None:
        self._bucket = bucket

    async def take(self, job: str, worker: str) -> Claim | None:
        """The claim, or None while another one lives (our own earlier one included)."""
        value = encode(Holder(worker=worker))
        with suppress(KeyWrongLastSequenceError, KeyNotFoundError):  # not found: it lapsed between two requests; again
            try:
                revision = await self._bucket.create(job, value)
            except KeyWrongLastSequenceError:
                if (nobodys := await self._unreadable(job)) is None:
                    return None
                revision = await self._bucket.update(job, value, last=nobodys)
            return Claim(job, worker, revision, revision)
        return None

    async def _unreadable(self, job: str) -> int | None:
        """The revision of an entry that is nobody's; None where there is none."""
        entry = await self._bucket.get(job)
        try:
            decode(entry.value or b"", Holder)
        except Malformed:
            return entry.revision
        return None

    async def holder(self, job: str) -> Holder | None:
        """Who runs the job, with the epoch filled in; None when nobody does."""
        try:
            entry = await self._bucket.get(job)
            value = decode(entry.value or b"", Holder)
        except (KeyNotFoundError, Malformed):
            return None
        return Holder(worker=value.worker, epoch=value.epoch or entry.revision or 0)

    async def renew(self, claim: Claim) -> bool:
        """Extends the claim by one lease. False: it is lost, for good."""
        value = encode(Holder(worker=claim.worker, epoch=claim.epoch))
        for _ in range(2):
            try:
                claim.revision = await self._bucket.update(claim.job, value, last=claim.revision)
                return True
            except KeyWrongLastSequenceError:
                if not await self._still_ours(claim):
                    return False
        return False

    async def _still_ours(self, claim: Claim) -> bool:
        """After a renewal whose answer got lost the revision has moved, yet the epoch in it is ours."""
        try:
            entry = await self._bucket.get(claim.job)
            value = decode(entry.value or b"", Holder)
        except (KeyNotFoundError, Malformed):
            return False
        if (value.epoch or entry.revision) != claim.epoch or entry.revision is None:
            return False
        claim.revision = entry.revision
        return True

    async def release(self, claim: Claim) -> None:
        """Gives the claim back, unless it was lost already."""
        for _ in range(TRIES):
            with suppress(KeyWrongLastSequenceError):  # somebody wrote in between: if it was not us, it is lost
                if await self.renew(claim):
                    await self._delete(claim.job, claim.revision)
                return

    async def revoke(self, job: str, epoch: int) -> bool:
        """Takes the claim of this epoch from whoever has it. False: nobody has it any more, or has another."""
        for _ in range(TRIES):
            with suppress(KeyWrongLastSequenceError):  # renewed in between
                try:
                    entry = await self._bucket.get(job)
                    value = decode(entry.value or b"", Holder)
                except (KeyNotFoundError, Malformed):
                    return False
                if (value.epoch or entry.revision) != epoch:
                    return False
                await self._delete(job, entry.revision)
                return True
        return False

    async def _delete(self, job: str, last: int | None) -> None:
        """Raises `KeyWrongLastSequenceError` as the bucket's update does, where its delete has a bare `APIError`."""
        try:
            await self._bucket.delete(job, last=last)
        except APIError as error:
            if error.err_code in WRONG_LAST_SEQUENCE:
                raise KeyWrongLastSequenceError(description=error.description) from error
            raise
