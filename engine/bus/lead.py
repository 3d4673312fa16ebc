"""The leader claim, hardened against entries that a worker can make the broker write into the bots' bucket."""

from __future__ import annotations

import asyncio
import math
from base64 import b64decode
from contextlib import suppress
from dataclasses import dataclass

from nats.js import JetStreamContext
from nats.js.errors import KeyWrongLastSequenceError, NotFoundError
from nats.js.kv import KV_DEL, KV_OP, KeyValue

from engine.bus import subjects
from engine.bus.claims import TRIES, Claim, Claims, Holder
from engine.bus.hearing import answered
from engine.bus.leases import Leases
from engine.job import Malformed, decode, encode


@dataclass(frozen=True)
class Found:
    """The entry at the key. `holder` None: nobody's. `free`: missing or released, not overwritten."""

    revision: int = 0
    holder: Holder | None = None
    free: bool = True


class Leads(Claims):
    """Claims whose entries may be forged, since a worker key can redirect a broker reply to this bucket.

    Such a reply may look like a holder or a tombstone. Only the stored message has the headers of a reply, so entries
    are not read by direct get.

    A forged entry hides the leader but does not depose it: the leader overwrites it at its next renewal. So a standby
    waits until nobody has done so for `seconds`.
    """

    def __init__(self, js: JetStreamContext, seconds: float) -> None:
        stream, prefix = subjects.kv_stream(subjects.LEADERS), subjects.kv_subject(subjects.LEADERS, "")
        super().__init__(KeyValue(subjects.LEADERS, stream, prefix, js, direct=False))
        self._js, self._stream, self._prefix, self._seconds = js, stream, prefix, seconds
        self._patient = math.inf  # until then a forged entry may hide a leader; inf before the first look

    async def take(self, job: str, worker: str) -> Claim | None:
        for _ in range(TRIES):
            found = await self._found(job)
            if not self._may_have(found):
                return None
            with suppress(KeyWrongLastSequenceError):
                revision = await self._bucket.update(job, encode(Holder(worker=worker)), last=found.revision)
                self._patient = -math.inf
                return Claim(job, worker, revision, revision)
        return None

    def _may_have(self, found: Found) -> bool:
        now = asyncio.get_running_loop().time()
        if found.holder is not None or (not found.free and self._patient == math.inf):
            self._patient = now + self._seconds
        return found.holder is None and (found.free or now >= self._patient)

    async def holder(self, job: str) -> Holder | None:
        return (await self._found(job)).holder

    async def _still_ours(self, claim: Claim) -> bool:
        found = await self._found(claim.job)
        if found.holder is None or found.holder.epoch != claim.epoch:
            return False
        claim.revision = found.revision
        return True

    async def _found(self, key: str) -> Found:
        try:
            stored = await self._js.get_msg(self._stream, subject=f"{self._prefix}{key}")
        except NotFoundError:
            return Found()
        revision = stored.seq or 0
        if answered(b64decode(stored.hdrs or "")):
            return Found(revision, free=False)
        if (stored.headers or {}).get(KV_OP) == KV_DEL:
            return Found(revision)
        try:
            holder = decode(stored.data or b"", Holder)
        except Malformed:
            return Found(revision, free=False)
        return Found(revision, Holder(worker=holder.worker, epoch=holder.epoch or revision))


def leases(js: JetStreamContext, seconds: float) -> Leases:
    """Return the leader lease of the bots on one broker."""
    return Leases(Leads(js, seconds), seconds)
