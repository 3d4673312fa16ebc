"""The worker's client of the bus: pulls and claims jobs, publishes results, stores snapshots, announces the worker.

Imports no torch. While the broker is away, calls raise `BrokerUnreachable`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, cast

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from engine.bus import subjects
from engine.bus.blobs import BlobMissing, BlobStore
from engine.bus.claims import Claim, ClaimHolder, Claims, StaleEpoch
from engine.bus.connection import BrokerUnreachable, translate_errors
from engine.bus.connection_base import BusBase, LatestByKey, OpenConnection
from engine.bus.deliveries import BusMessage, PullConsumer
from engine.bus.subjects import pool_consumer_config
from engine.contract import (
    MAX_CANDIDATE_IMAGES,
    MAX_COUNT,
    AmendJob,
    AmendmentLog,
    ControlMessage,
    DecodeReply,
    DecodeRequest,
    DescribeReply,
    DescribeRequest,
    EmbedReply,
    EmbedRequest,
    Epoch,
    Frame,
    Job,
    JobModelLoading,
    MalformedMessage,
    ModelProgress,
    Presence,
    Result,
    Sha256,
    Snapshot,
    decode,
    encode,
)

log = logging.getLogger(__name__)


class WorkerClient(BusBase):
    def __init__(self, connection: OpenConnection) -> None:
        super().__init__(connection)
        self._claims = Claims(self._bucket(subjects.CLAIMS))
        self._snapshots = SnapshotStore(
            self.js, self._bucket(subjects.SNAPSHOTS), self.blobs, has_worker_key=self.has_worker_key
        )
        self._tombstone_bucket = self._bucket(subjects.CANCELLED)
        self._presence_bucket = self._bucket(subjects.WORKERS)
        self._consumers: dict[str, PullConsumer[Job]] = {}
        self._announced_pools: dict[str, tuple[str, ...]] = {}  # pools in which a worker was announced
        self._reply_tasks: set[asyncio.Task[None]] = set()
        self._describe_subscriptions: dict[str, Subscription] = {}  # by model
        self._decode_subscriptions: dict[str, Subscription] = {}  # by subject
        self._salt = secrets.token_bytes(16)  # else another client could publish our message id first

    async def pull_job(
        self, pools: Sequence[str], timeout: float = 1.0, *, wait: bool = True
    ) -> BusMessage[Job] | None:
        """Return the next job of these pools, in order of preference; None after `timeout` seconds.

        With `wait` False, return only a job that no other worker waits for.
        """
        for pool in pools:
            if pool not in self._consumers:
                config = pool_consumer_config(pool, self.limits.lease)
                self._consumers[pool] = PullConsumer(
                    self.client,
                    subjects.WORK,
                    config,
                    Job,
                    self.dead_letters,
                    has_worker_key=self.has_worker_key,
                    rests=True,
                )
            message = await self._consumers[pool].next_message(timeout / len(pools), wait=wait)
            if message is not None:
                return message
        return None

    async def stop_pulling(self) -> None:
        """Hand back jobs that are on their way to us, so that nobody waits for their leases to expire."""
        for consumer in self._consumers.values():
            await consumer.close()
        self._consumers.clear()

    async def claim_job(self, job: str, worker: str) -> Claim | None:
        """Claim a job for one lease; None while another worker has it. Its epoch fences everything that we send."""
        with translate_errors("claim"):
            return await self._claims.acquire(job, worker)

    async def renew_claim(self, claim: Claim) -> bool:
        """Extend a claim by one lease. False: it is lost, so stop and publish nothing."""
        with translate_errors("renew a claim"):
            return await self._claims.renew(claim)

    async def release_claim(self, claim: Claim) -> None:
        with translate_errors("release a claim"):
            await self._claims.release(claim)

    async def get_holder(self, job: str) -> ClaimHolder | None:
        """Return who holds a job, and its epoch."""
        with translate_errors("look up a claim"):
            return await self._claims.get_holder(job)

    async def revoke_claim(self, job: str, epoch: int) -> bool:
        """Take a job from its worker, which stops at its next heartbeat. False: there is no claim of this epoch."""
        with translate_errors("revoke a claim"):
            return await self._claims.revoke(job, epoch)

    async def publish_frame(self, frame: Frame) -> None:
        with translate_errors("send a preview"):
            await self.client.publish(subjects.make_frame_subject(frame.job), encode(frame))

    async def publish_loading(self, loading: JobModelLoading) -> None:
        """Publish how much of a job's model is in memory. Not stored, like a preview."""
        with translate_errors("report how much of a model is loaded"):
            await self.client.publish(subjects.make_loading_subject(loading.job), encode(loading))

    async def publish_progress(self, worker: str, pools: Sequence[str], progress: ModelProgress) -> None:
        """Publish what this worker does before it is ready. Not stored, like a preview."""
        payload = encode(progress)
        with translate_errors("report this worker's progress"):
            for pool in pools:
                await self.client.publish(subjects.make_progress_subject(worker, pool), payload)

    async def publish_result(self, worker: str, result: Result) -> None:
        """Return when the broker has stored the result.

        If a lost reply makes us send it again, its id lets the broker drop the duplicate.
        """
        payload = encode(result)
        headers = {"Nats-Msg-Id": hashlib.blake2b(payload, digest_size=16, key=self._salt).hexdigest()}
        subject = subjects.make_result_subject(worker, result.job)
        with translate_errors("publish a result"):
            await self.js.publish(subject, payload, stream=subjects.RESULTS, headers=headers)

    async def put_snapshot(self, snapshot: Snapshot) -> None:
        """Store a snapshot. Raises `StaleEpoch` when a newer epoch has written that image."""
        with translate_errors("store a snapshot"):
            await self._snapshots.put(snapshot)

    async def get_snapshots(self, job: str, image_count: int = MAX_COUNT) -> list[Snapshot]:
        with translate_errors("read snapshots"):
            return await self._snapshots.get(job, image_count)

    async def drop_snapshots(self, job: str) -> None:
        with translate_errors("drop snapshots"):
            await self._snapshots.drop(job)

    async def is_cancelled(self, job: str) -> bool:
        with translate_errors("look for a tombstone"):
            try:
                await self._tombstone_bucket.get(job)
            except KeyNotFoundError:
                return False
            return True

    async def watch_cancelled(self) -> AsyncIterator[str]:
        """Yield ids of jobs cancelled from now on; `is_cancelled` tells of earlier or missed ones."""
        async for job in self._iter_job_ids(subjects.kv_subject(subjects.CANCELLED, "*")):
            yield job

    async def watch_preview_requests(self) -> AsyncIterator[str]:
        """Yield ids of watched jobs, again and again while somebody watches."""
        async for job in self._iter_job_ids(subjects.PREVIEW_REQUESTS_ALL):
            yield job

    def watch_control_messages(self) -> AsyncIterator[ControlMessage]:
        """Yield the control messages of all jobs: the newest pause or resume, weight and pace of each."""
        return self._iter_latest(
            [subjects.CONTROL_ALL],
            ControlMessage,
            lambda message: (message.job, message.action if message.action in ("weigh", "pace") else "pause"),
        )

    def watch_amendments(self, pools: Sequence[str]) -> AsyncIterator[AmendJob]:
        """Yield the changes of jobs of these pools. Each message holds all that its job still waits for, so the newest
        counts.
        """
        amendment_subjects = [subjects.make_amendment_subject(pool, "*") for pool in pools]
        return self._iter_latest(amendment_subjects, AmendJob, lambda message: message.job)

    async def put_amendment_log(self, amendment_log: AmendmentLog) -> None:
        """Store what has been changed about a job. Raises `StaleEpoch` when a newer epoch has written it."""
        with translate_errors("store the changes of a picture"):
            await self._snapshots.put_amendment_log(amendment_log)

    async def get_amendment_log(self, job: str) -> AmendmentLog | None:
        with translate_errors("read the changes of a picture"):
            return await self._snapshots.get_amendment_log(job)

    async def _iter_job_ids(self, subject: str) -> AsyncIterator[str]:
        latest: LatestByKey[str, str] = LatestByKey()

        def store_job(msg: Msg) -> None:
            job = msg.subject.rsplit(".", 1)[-1]
            latest.put(job, job)

        async with self._listen(subject, store_job):
            while True:
                yield await latest.get()

    async def announce(self, presence: Presence) -> None:
        """Announce this worker in each of its pools; its own key allows no others."""
        self._announced_pools[presence.worker] = presence.pools
        payload = encode(presence)
        with translate_errors("announce this worker"):
            for pool in presence.pools:
                await self._presence_bucket.put(subjects.presence_key(presence.worker, pool), payload)

    async def remove_presence(self, worker: str) -> None:
        """Remove this worker's presence, so that nobody counts on it for another lease."""
        with translate_errors("remove this worker's presence"):
            for pool in self._announced_pools.pop(worker, ()):
                await self._presence_bucket.delete(subjects.presence_key(worker, pool))

    async def serve_embed(self, handler: EmbedHandler) -> None:
        """Answer requests for text embeddings from now on, shared among the workers. `handler` runs off the loop."""

        async def answer(msg: Msg) -> None:
            await msg.respond(encode(await answer_embed(handler, msg)))

        with translate_errors("offer embedding"):
            await self.client.subscribe(subjects.EMBED, queue=subjects.EMBED, cb=answer)

    async def serve_describe(self, models: Sequence[str], handler: DescribeHandler) -> None:
        """Answer image-to-prompt requests for exactly these models from now on, shared among the workers.

        `handler` raises only `CancelledError`. Requests run concurrently.
        """

        async def answer(msg: Msg) -> None:
            task = asyncio.create_task(answer_describe(handler, msg))
            self._reply_tasks.add(task)
            task.add_done_callback(self._reply_tasks.discard)

        with translate_errors("offer image-to-prompt"):
            for model in set(models) - self._describe_subscriptions.keys():
                subscription = await self.client.subscribe(
                    subjects.make_describe_subject(model), queue=subjects.DESCRIBE_GROUP, cb=answer
                )
                self._describe_subscriptions[model] = subscription
            for model in self._describe_subscriptions.keys() - set(models):
                await self._describe_subscriptions.pop(model).unsubscribe()

    async def serve_decode(self, pools: Sequence[str], models: Sequence[str], handler: DecodeHandler) -> None:
        """Answer decode requests for exactly these models in these pools from now on.

        `handler` raises only `CancelledError`. Requests run concurrently.
        """

        async def answer(msg: Msg) -> None:
            task = asyncio.create_task(answer_decode(handler, msg))
            self._reply_tasks.add(task)
            task.add_done_callback(self._reply_tasks.discard)

        wanted_subjects = {subjects.make_decode_subject(pool, model) for pool in pools for model in models}
        with translate_errors("offer decoding"):
            for subject in wanted_subjects - self._decode_subscriptions.keys():
                subscription = await self.client.subscribe(subject, queue=subjects.DECODE_GROUP, cb=answer)
                self._decode_subscriptions[subject] = subscription
            for subject in self._decode_subscriptions.keys() - wanted_subjects:
                await self._decode_subscriptions.pop(subject).unsubscribe()


EmbedHandler = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[float]]]]
DescribeHandler = Callable[[DescribeRequest], Awaitable[DescribeReply]]
DecodeHandler = Callable[[DecodeRequest], Awaitable[DecodeReply]]


async def answer_decode(handler: DecodeHandler, msg: Msg) -> None:
    """Reply with thumbnails, or with the reason why there are none."""
    try:
        reply = await handler(decode(msg.data, DecodeRequest))
    except MalformedMessage as error:
        reply = DecodeReply(error=f"The request is malformed: {error}"[:500])
    try:
        with translate_errors("answer with thumbnails"):
            await msg.respond(encode(reply))
    except BrokerUnreachable as error:
        log.warning("%s", error)


async def answer_describe(handler: DescribeHandler, msg: Msg) -> None:
    """Reply with prediction errors, or with the reason why there are none. A failed send is only logged."""
    try:
        reply = await handler(decode(msg.data, DescribeRequest))
    except MalformedMessage as error:
        reply = DescribeReply(error=f"The request is malformed: {error}"[:500])
    try:
        with translate_errors("answer an image-to-prompt request"):
            await msg.respond(encode(reply))
    except BrokerUnreachable as error:
        log.warning("%s", error)


async def answer_embed(handler: EmbedHandler, msg: Msg) -> EmbedReply:
    """Return the vectors, or the reason why there are none."""
    try:
        texts = decode(msg.data, EmbedRequest).texts
        vectors = await handler(texts)
        return EmbedReply(vectors=tuple(tuple(float(x) for x in vector) for vector in vectors))
    except MalformedMessage as error:
        return EmbedReply(error=f"The request is malformed: {error}"[:500])
    except Exception:
        log.exception("embedding failed")
        return EmbedReply(error="This worker failed to embed the texts.")


LARGEST_VALUE = 6 * 1024 * 1024  # below the broker's 8 MB a message
LARGEST_SNAPSHOT = 1024 * 1024 * 1024


class SnapshotBlobRef(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Names the blob of a snapshot that is too large for a message."""

    epoch: Epoch
    sha256: Sha256


def _decode_value(payload: bytes) -> Snapshot | AmendmentLog | SnapshotBlobRef:
    return decode(payload, cast(Any, Snapshot | AmendmentLog | SnapshotBlobRef))


class SnapshotStore:
    """The snapshots bucket.

    `has_worker_key`: our key may not purge a stream, so a dropped snapshot leaves a delete marker.
    """

    def __init__(
        self, js: JetStreamContext, bucket: KeyValue, blobs: BlobStore, *, has_worker_key: bool = False
    ) -> None:
        self._js = js
        self._bucket = bucket
        self._blobs = blobs
        self._has_worker_key = has_worker_key
        self._own_writes: dict[str, tuple[int, int, str]] = {}  # key → (epoch, revision, blob) of our last write

    async def put(self, snapshot: Snapshot) -> None:
        """Write the snapshot. Raises `StaleEpoch` if a newer epoch has written that image."""
        value, blob = await self._pack(snapshot)
        await self._write(subjects.snapshot_key(snapshot.job, snapshot.image), value, snapshot.epoch, blob)

    async def put_amendment_log(self, amendment_log: AmendmentLog) -> None:
        """Write a job's amendments. Raises `StaleEpoch` if a newer epoch has written them."""
        await self._write(subjects.amendment_log_key(amendment_log.job), encode(amendment_log), amendment_log.epoch)

    async def _write(self, key: str, value: bytes, own_epoch: int, blob: str = "") -> None:
        for _ in range(3):
            epoch, revision, old_blob = self._own_writes.get(key) or await self._read_stored(key)
            if epoch > own_epoch:
                self._own_writes.pop(key, None)
                raise StaleEpoch(f"{key} is of a newer epoch")
            try:
                new_revision = await self._bucket.update(key, value, last=revision)
            except KeyWrongLastSequenceError:
                self._own_writes.pop(key, None)
                continue
            self._own_writes[key] = (own_epoch, new_revision, blob)
            if old_blob and old_blob != blob:
                await self._blobs.drop(old_blob)
            return
        raise StaleEpoch(f"somebody else is writing {key}")

    async def _pack(self, snapshot: Snapshot) -> tuple[bytes, str]:
        value = encode(snapshot)
        if len(value) <= LARGEST_VALUE:
            return value, ""
        sha = await self._blobs.put(value)
        return encode(SnapshotBlobRef(epoch=snapshot.epoch, sha256=sha)), sha

    async def _read_stored(self, key: str) -> tuple[int, int, str]:
        """Return (epoch, revision, blob) of the stored value. Anyone may overwrite an unreadable value."""
        try:
            entry = await self._bucket.get(key)
        except KeyNotFoundError as error:  # a delete marker has a revision too
            deleted: KeyValue.Entry | None = cast(Any, error).entry
            return 0, (deleted.revision or 0) if deleted else 0, ""
        revision = entry.revision or 0
        try:
            value = _decode_value(entry.value or b"")
        except MalformedMessage as error:
            log.error("snapshot %s is unreadable: %s", key, error)
            return 0, revision, ""
        return value.epoch, revision, value.sha256 if isinstance(value, SnapshotBlobRef) else ""

    async def get(self, job: str, image_count: int = MAX_COUNT) -> list[Snapshot]:
        """Return a job's snapshots in the order of its images. Unreadable ones are logged and left out."""
        snapshots = await asyncio.gather(*(self._read_image(job, image) for image in range(image_count)))
        return [snapshot for snapshot in snapshots if snapshot is not None]

    async def get_amendment_log(self, job: str) -> AmendmentLog | None:
        """Return a job's amendments; None if it has none, or if they cannot be read, which is logged."""
        try:
            entry = await self._bucket.get(subjects.amendment_log_key(job))
            value = _decode_value(entry.value or b"")
        except KeyNotFoundError:
            return None
        except MalformedMessage as error:
            log.error("the amendments of job %s are unreadable: %s", job, error)
            return None
        return value if isinstance(value, AmendmentLog) and value.job == job else None

    async def _read_image(self, job: str, image: int) -> Snapshot | None:
        key = subjects.snapshot_key(job, image)
        try:
            entry = await self._bucket.get(key)
            value = _decode_value(entry.value or b"")
            if isinstance(value, SnapshotBlobRef):
                value = decode(await self._blobs.get(value.sha256, LARGEST_SNAPSHOT), Snapshot)
        except KeyNotFoundError:
            return None
        except (MalformedMessage, BlobMissing) as error:
            log.error("snapshot %s is unreadable: %s", key, error)
            return None
        return value if isinstance(value, Snapshot) and (value.job, value.image) == (job, image) else None

    async def drop(self, job: str) -> None:
        """Delete a finished job's snapshots; a purge leaves no delete marker."""
        blobs = [self._own_writes.pop(key, (0, 0, ""))[2] for key in self._image_keys(job)]
        if self._has_worker_key:
            await asyncio.gather(*(self._delete_if_present(key) for key in self._image_keys(job)))
        else:
            await self._js.purge_stream(
                subjects.kv_stream(subjects.SNAPSHOTS), subject=subjects.kv_subject(subjects.SNAPSHOTS, f"{job}.*")
            )
        for blob in blobs:
            if blob:
                await self._blobs.drop(blob)

    async def _delete_if_present(self, key: str) -> None:
        """Delete a key that exists. Most images of a short job have none: a look costs less than a useless marker."""
        try:
            await self._bucket.get(key)
        except KeyNotFoundError:
            return
        await self._bucket.delete(key)

    @staticmethod
    def _image_keys(job: str) -> list[str]:
        images = (subjects.snapshot_key(job, image) for image in range(MAX_CANDIDATE_IMAGES))
        return [*images, subjects.amendment_log_key(job)]
