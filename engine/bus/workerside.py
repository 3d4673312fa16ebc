"""The worker's client of the bus: pulls and claims jobs, publishes results, stores snapshots, announces the worker.

Imports no torch. While the broker is away, calls raise `Unreachable`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Sequence

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.errors import KeyNotFoundError

from engine.bus import subjects
from engine.bus.answering import Decode, Describe, Embed, answer_decode, answer_describe, answer_embed
from engine.bus.claims import Claim, Claims, Holder
from engine.bus.deliveries import Delivered, Pull
from engine.bus.latest import Latest
from engine.bus.link import reaching
from engine.bus.snapshots import Snapshots
from engine.bus.station import Act, Station
from engine.bus.streams import Kept, pool_consumer
from engine.job import (
    Frame,
    Job,
    Loading,
    ModelProgress,
    Presence,
    Result,
    Snapshot,
    Steer,
    encode,
)

log = logging.getLogger(__name__)


class WorkerSide(Station):
    def __init__(self, client: Client, kept: Kept, again: list[Act], scoped: bool = False) -> None:
        super().__init__(client, kept, again, scoped)
        self._claims = Claims(self._bucket(subjects.CLAIMS))
        self._snapshots = Snapshots(self.js, self._bucket(subjects.SNAPSHOTS), self.blobs, scoped=scoped)
        self._cancelled = self._bucket(subjects.CANCELLED)
        self._announced = self._bucket(subjects.WORKERS)
        self._pulls: dict[str, Pull[Job]] = {}
        self._there: dict[str, tuple[str, ...]] = {}  # pools in which a worker was announced
        self._answering: set[asyncio.Task[None]] = set()
        self._described: dict[str, Subscription] = {}  # by model
        self._decodes: dict[str, Subscription] = {}  # by subject
        self._salt = secrets.token_bytes(16)  # else another client could publish our message id first

    async def pull(self, pools: Sequence[str], timeout: float = 1.0, *, wait: bool = True) -> Delivered[Job] | None:
        """Return the next job of these pools, in order of preference; None after `timeout` seconds.

        With `wait` False, return only a job that no other worker waits for.
        """
        for pool in pools:
            if pool not in self._pulls:
                config = pool_consumer(pool, self.kept.lease)
                self._pulls[pool] = Pull(
                    self.client, self.js, subjects.WORK, config, Job, self.dead, scoped=self.scoped
                )  # fmt: skip
            delivered = await self._pulls[pool].next(timeout / len(pools), wait=wait)
            if delivered is not None:
                return delivered
        return None

    async def stop_pulling(self) -> None:
        """Hand back jobs that are on their way to us, so that nobody waits for their leases to expire."""
        for pull in self._pulls.values():
            await pull.close()
        self._pulls.clear()

    async def claim(self, job: str, worker: str) -> Claim | None:
        """Claim a job for one lease; None while another worker has it. `claim.epoch` fences all we send."""
        with reaching("claim"):
            return await self._claims.take(job, worker)

    async def renew(self, claim: Claim) -> bool:
        """Extend a claim by one lease. False: it is lost, so stop and publish nothing."""
        with reaching("renew a claim"):
            return await self._claims.renew(claim)

    async def release(self, claim: Claim) -> None:
        with reaching("release a claim"):
            await self._claims.release(claim)

    async def holder(self, job: str) -> Holder | None:
        """Return who holds a job, and its epoch."""
        with reaching("look up a claim"):
            return await self._claims.holder(job)

    async def revoke(self, job: str, epoch: int) -> bool:
        """Take a job from its worker, which stops at its next heartbeat. False: there is no claim of this epoch."""
        with reaching("revoke a claim"):
            return await self._claims.revoke(job, epoch)

    async def publish_frame(self, frame: Frame) -> None:
        with reaching("send a preview"):
            await self.client.publish(subjects.frames(frame.job), encode(frame))

    async def publish_loading(self, loading: Loading) -> None:
        """Publish how much of a job's model is in memory. Not stored, like a preview."""
        with reaching("report how much of a model is loaded"):
            await self.client.publish(subjects.loading(loading.job), encode(loading))

    async def publish_progress(self, worker: str, pools: Sequence[str], progress: ModelProgress) -> None:
        """Publish what this worker does before it is ready. Not stored, like a preview."""
        payload = encode(progress)
        with reaching("report this worker's progress"):
            for pool in pools:
                await self.client.publish(subjects.progress(worker, pool), payload)

    async def publish_result(self, worker: str, result: Result) -> None:
        """Return when the broker has stored the result. Its id removes the duplicate if a lost reply makes us resend
        it.
        """
        payload = encode(result)
        headers = {"Nats-Msg-Id": hashlib.blake2b(payload, digest_size=16, key=self._salt).hexdigest()}
        subject = subjects.result(worker, result.job)
        with reaching("publish a result"):
            await self.js.publish(subject, payload, stream=subjects.RESULTS, headers=headers)

    async def put_snapshot(self, snapshot: Snapshot) -> None:
        """Store a snapshot. Raises `Fenced` when a newer epoch has written that image."""
        with reaching("store a snapshot"):
            await self._snapshots.put(snapshot)

    async def get_snapshots(self, job: str) -> list[Snapshot]:
        with reaching("read snapshots"):
            return await self._snapshots.get(job)

    async def drop_snapshots(self, job: str) -> None:
        with reaching("drop snapshots"):
            await self._snapshots.drop(job)

    async def is_cancelled(self, job: str) -> bool:
        with reaching("look for a tombstone"):
            try:
                await self._cancelled.get(job)
            except KeyNotFoundError:
                return False
            return True

    async def watch_cancelled(self) -> AsyncIterator[str]:
        """Yield ids of jobs cancelled from now on; `is_cancelled` tells of earlier or missed ones."""
        async for job in self._ids(subjects.kv_subject(subjects.CANCELLED, "*")):
            yield job

    async def wants(self) -> AsyncIterator[str]:
        """Yield ids of watched jobs, again and again while somebody watches."""
        async for job in self._ids(subjects.WANT_ALL):
            yield job

    def steers(self) -> AsyncIterator[Steer]:
        """Yield pauses, resumes and weights of all jobs: the newest pause or resume and the newest weight of each."""
        return self._newest(subjects.STEER_ALL, Steer, lambda one: (one.job, one.deed == "weigh"))

    async def _ids(self, subject: str) -> AsyncIterator[str]:
        latest: Latest[str, str] = Latest()

        def keep(msg: Msg) -> None:
            job = msg.subject.rsplit(".", 1)[-1]
            latest.put(job, job)

        async with self._listening(subject, keep):
            while True:
                yield await latest.get()

    async def announce(self, presence: Presence) -> None:
        """Announce this worker in each of its pools; its own key allows no others."""
        self._there[presence.worker] = presence.pools
        payload = encode(presence)
        with reaching("announce this worker"):
            for pool in presence.pools:
                await self._announced.put(subjects.presence_key(presence.worker, pool), payload)

    async def depart(self, worker: str) -> None:
        """Remove this worker's presence, so that nobody counts on it for another lease."""
        with reaching("remove this worker's presence"):
            for pool in self._there.pop(worker, ()):
                await self._announced.delete(subjects.presence_key(worker, pool))

    async def serve_embed(self, embed: Embed) -> None:
        """Answer `embed` requests from now on, shared among the workers; `embed` runs off the loop."""

        async def answer(msg: Msg) -> None:
            await msg.respond(encode(await answer_embed(embed, msg)))

        with reaching("offer embedding"):
            await self.client.subscribe(subjects.EMBED, queue=subjects.EMBED, cb=answer)

    async def serve_describe(self, models: Sequence[str], describe: Describe) -> None:
        """Answer image-to-prompt requests for exactly these models from now on, shared among the workers.

        `describe` raises only cancellation. Requests run concurrently.
        """

        async def answer(msg: Msg) -> None:
            task = asyncio.create_task(answer_describe(describe, msg))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

        with reaching("offer image-to-prompt"):
            for model in set(models) - self._described.keys():
                heard = await self.client.subscribe(subjects.describe(model), queue=subjects.DESCRIBERS, cb=answer)
                self._described[model] = heard
            for model in self._described.keys() - set(models):
                await self._described.pop(model).unsubscribe()

    async def serve_decode(self, pools: Sequence[str], models: Sequence[str], decode: Decode) -> None:
        """Answer decode requests for exactly these models in these pools from now on.

        `decode` raises only cancellation. Requests run concurrently.
        """

        async def answer(msg: Msg) -> None:
            task = asyncio.create_task(answer_decode(decode, msg))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

        wanted = {subjects.decode(pool, model) for pool in pools for model in models}
        with reaching("offer decoding"):
            for subject in wanted - self._decodes.keys():
                heard = await self.client.subscribe(subject, queue=subjects.DECODERS, cb=answer)
                self._decodes[subject] = heard
            for subject in self._decodes.keys() - wanted:
                await self._decodes.pop(subject).unsubscribe()
