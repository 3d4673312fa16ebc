"""Names on the wire (subjects, streams, buckets and keys), and the broker's streams and buckets.

A contract `Name` may contain dots, which separate tokens in NATS. Here a dot becomes `=`, which `Name` does not allow,
so no two names share a token. Making streams twice is harmless: both sides do it at the start, and again after the
broker lost its store. No stream allows the header `Nats-Rollup`: a client that may publish one message could purge the
whole stream by it.
"""

from __future__ import annotations

import asyncio
import time
from base64 import urlsafe_b64encode
from dataclasses import dataclass, replace

from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, BadRequestError, NotFoundError

from engine.contract import Job

WORK = "work"
RESULTS = "results"
DEAD_LETTERS = "dead"
CLAIMS = "claims"
LEADERS = "leaders"
SNAPSHOTS = "snapshots"
CANCELLED = "cancelled"
WORKERS = "workers"
BLOBS = "blobs"
BLOBS_STREAM = f"OBJ_{BLOBS}"
EMBED = "embed"
RESULT_CONSUMER = "settle"  # the durable consumer of results

FRAMES_ALL = "frames.*"
LOADING_ALL = "loading.*"
PREVIEW_REQUESTS_ALL = "want.*"
CONTROL_ALL = "steer.*"
PROGRESS_ALL = "progress.*.*"
REPLIES_ALL = "vectors.*"
DESCRIBE_ALL = "describe.*"
DESCRIBE_GROUP = "describe"  # queue group: workers share these requests
DECODE_GROUP = "decode"  # queue group: workers share decode requests


def to_token(name: str) -> str:
    """Return a contract name as one subject token or consumer name."""
    return name.replace(".", "=")


def make_inbox_subject(worker: str) -> str:
    """Return where replies to a worker with its own key go: no other worker can subscribe there."""
    return f"_INBOX.{to_token(worker)}"


def make_work_subject(job: Job) -> str:
    """Return a dispatch subject. It contains the attempt, so a requeue is never taken for a duplicate."""
    return f"{WORK}.{to_token(job.pool)}.{job.id}.{job.attempt}"


def all_attempts(pool: str, job: str) -> str:
    """Return the pattern for every attempt of a job."""
    return f"{WORK}.{to_token(pool)}.{job}.*"


def pool_filter(pool: str) -> str:
    return f"{WORK}.{to_token(pool)}.>"


def pool_consumer(pool: str) -> str:
    return f"pool-{to_token(pool)}"


def make_result_subject(worker: str, job: str) -> str:
    return f"{RESULTS}.{to_token(worker)}.{job}"


def parse_result_subject(subject: str) -> tuple[str, str]:
    """Return worker and job of a result's subject. A worker with its own key cannot publish under another's name."""
    _, _, worker_and_job = subject.partition(".")
    worker, _, job = worker_and_job.partition(".")
    return worker.replace("=", "."), job


def make_frame_subject(job: str) -> str:
    return f"frames.{job}"


def make_loading_subject(job: str) -> str:
    """Return the subject of loading progress: not a frame, which readers would take for a broken preview."""
    return f"loading.{job}"


def make_preview_request_subject(job: str) -> str:
    return f"want.{job}"


def make_control_subject(job: str) -> str:
    """Return the subject for pause, resume and weight of a job; the worker that runs it listens."""
    return f"steer.{job}"


def make_amendment_subject(pool: str, job: str) -> str:
    """Return the subject for changes of a job's picture; the workers of its pool listen, since changes have words."""
    return f"amend.{to_token(pool)}.{job}"


def make_reply_subject(request: str) -> str:
    """Return the subject for a reply to the bot: remote workers cannot reach its inboxes."""
    return f"vectors.{request}"


def make_describe_subject(model: str) -> str:
    """Return the subject of image-to-prompt requests, for workers with this model."""
    return f"describe.{to_token(model)}"


def make_decode_subject(pool: str, model: str) -> str:
    """Return the subject of decode requests, for workers with this model in the pool that made the picture."""
    return f"decode.{to_token(pool)}.{to_token(model)}"


def make_progress_subject(worker: str, pool: str) -> str:
    """Return the subject of a worker's loading progress: one for each of its pools, stored nowhere."""
    return f"progress.{presence_key(worker, pool)}"


def parse_progress_subject(subject: str) -> tuple[str, str]:
    """Return worker and pool of a progress subject."""
    _, worker, pool = subject.split(".")
    return worker.replace("=", "."), pool.replace("=", ".")


def make_dead_letter_subject(subject: str) -> str:
    return f"{DEAD_LETTERS}.{subject}"


def snapshot_key(job: str, image: int) -> str:
    return f"{job}.{image}"


def amendment_log_key(job: str) -> str:
    """Return the key of a job's amendments, beside its snapshots."""
    return f"{job}.amendments"


def presence_key(worker: str, pool: str) -> str:
    """Return the key of a presence. There is one for each pool, so the broker can limit a worker key to its pools."""
    return f"{to_token(worker)}.{to_token(pool)}"


def parse_presence_subject(subject: str) -> tuple[str, str]:
    """Return worker and pool of a presence's subject; empty where it does not name both."""
    tokens = subject.removeprefix(kv_subject(WORKERS, "")).split(".")
    worker, pool = tokens if len(tokens) == 2 else ("", "")
    return worker.replace("=", "."), pool.replace("=", ".")


def blob_entry(sha: str) -> str:
    """Return the subject of a blob's entry: its name in base64, as in the client library's object store."""
    return f"$O.{BLOBS}.M.{urlsafe_b64encode(sha.encode()).decode()}"


def blob_chunk(chunk_id: str, number: int | str) -> str:
    """Return the subject of one chunk of a blob; a newer message replaces it."""
    return f"$O.{BLOBS}.C.{chunk_id}.{number}"


def kv_stream(bucket: str) -> str:
    return f"KV_{bucket}"


def kv_subject(bucket: str, key: str) -> str:
    return f"$KV.{bucket}.{key}"


DAY = 86_400.0
MIB = 1024 * 1024
OUT_OF_STORAGE = 10047  # "insufficient storage resources available"
RETRY_PAUSES = (0.0, 0.1, 0.3, 1.0)  # seconds


@dataclass(frozen=True)
class BusLimits:
    """Retention in seconds and size limits in bytes; the sizes sum to less than the broker's `FILE_BYTES`."""

    lease: float = 10.0  # a claim and a worker's presence live this long without renewal; also `ack_wait`
    max_age: float = 7 * DAY  # cancel tombstones, snapshots, dead letters
    leader_lease: float = 4.0  # the leader lease: a standby takes over when it expires
    blob_age: float = DAY  # pictures in transit: the bot copies them within seconds
    work_bytes: int = 256 * MIB
    result_bytes: int = 1024 * MIB
    snapshot_bytes: int = 512 * MIB
    blob_bytes: int = 4096 * MIB
    dead_bytes: int = 64 * MIB

    @property
    def renewal_interval(self) -> float:
        """Seconds between renewals: two may be lost and the lease still holds."""
        return self.lease * 0.3


def _bucket_config(name: str, ttl: float, **extra: object) -> StreamConfig:
    """Return a key-value bucket's stream, in the client library's layout."""
    config = StreamConfig(
        name=kv_stream(name),
        subjects=[kv_subject(name, ">")],
        max_msgs_per_subject=1,
        max_age=ttl,
        duplicate_window=min(ttl, 120.0),
        allow_direct=True,
        deny_delete=True,
        discard=DiscardPolicy.NEW,
        storage=StorageType.FILE,
    )
    return config.evolve(**extra)


def build_stream_configs(limits: BusLimits, now: float) -> list[StreamConfig]:
    """Return all stream configurations. `now`: seconds since 1970.

    Claim revisions are the epochs, and SQL rejects an older epoch. So a new claims stream must start above every epoch
    of a lost one. It starts at the time in milliseconds, which renewals are too slow to overtake.
    """
    return [
        StreamConfig(
            name=WORK,
            subjects=[f"{WORK}.>"],
            retention=RetentionPolicy.WORK_QUEUE,
            max_msgs_per_subject=1,
            discard=DiscardPolicy.NEW,
            discard_new_per_subject=True,
            storage=StorageType.FILE,
            max_bytes=limits.work_bytes,
        ),
        StreamConfig(
            name=RESULTS,
            subjects=[f"{RESULTS}.>"],
            retention=RetentionPolicy.WORK_QUEUE,
            max_bytes=limits.result_bytes,
            discard=DiscardPolicy.NEW,
            storage=StorageType.FILE,  # none is ever dropped
        ),
        StreamConfig(
            name=DEAD_LETTERS,
            subjects=[f"{DEAD_LETTERS}.>"],
            max_age=limits.max_age,
            max_bytes=limits.dead_bytes,
            discard=DiscardPolicy.OLD,
            storage=StorageType.FILE,
        ),
        _bucket_config(CLAIMS, limits.lease, first_seq=int(now * 1000)),
        _bucket_config(LEADERS, limits.leader_lease),
        _bucket_config(WORKERS, limits.lease, storage=StorageType.MEMORY),
        _bucket_config(CANCELLED, limits.max_age),
        # A full bucket drops its oldest snapshots. That costs steps, but so would refusing new ones.
        _bucket_config(SNAPSHOTS, limits.max_age, max_bytes=limits.snapshot_bytes, discard=DiscardPolicy.OLD),
        # Each chunk of a blob has its own subject. A full bucket drops its oldest, which were copied long ago.
        StreamConfig(
            name=BLOBS_STREAM,
            subjects=[f"$O.{BLOBS}.{part}.>" for part in "CM"],
            max_age=limits.blob_age,
            max_bytes=limits.blob_bytes,
            discard=DiscardPolicy.OLD,
            storage=StorageType.FILE,
            max_msgs_per_subject=1,
            allow_direct=True,
        ),
    ]


def result_consumer_config() -> ConsumerConfig:
    """Return the durable consumer of results. A killed bot gets its unacknowledged results again after `ack_wait`."""
    return ConsumerConfig(
        durable_name=RESULT_CONSUMER,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=15.0,
        max_deliver=-1,
        max_ack_pending=10_000,
    )


def pool_consumer_config(pool: str, lease: float) -> ConsumerConfig:
    return ConsumerConfig(
        durable_name=pool_consumer(pool),
        filter_subject=pool_filter(pool),
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=lease,
        max_deliver=-1,
        max_ack_pending=100_000,
    )


async def declare_streams(js: JetStreamContext, limits: BusLimits) -> None:
    """Make missing streams. Raises the client library's errors."""
    configs = build_stream_configs(limits, time.time())
    await asyncio.gather(*(_ensure_stream(js, config) for config in configs))


async def _ensure_stream(js: JetStreamContext, config: StreamConfig) -> None:
    """Make a stream, with retries: processes that make it at once each reserve its bytes, which may not fit."""
    assert config.name is not None
    for pause in RETRY_PAUSES:
        await asyncio.sleep(pause)
        try:
            info = await js.stream_info(config.name)
        except NotFoundError:
            if await _try_create(js, config, is_last_try=pause == RETRY_PAUSES[-1]):
                return
        else:
            if info.config.allow_rollup_hdrs:  # made by others: a worker's key could purge it by a header
                await js.update_stream(replace(info.config, allow_rollup_hdrs=False))
            return


async def _try_create(js: JetStreamContext, config: StreamConfig, *, is_last_try: bool) -> bool:
    try:
        await js.add_stream(config)
    except BadRequestError:  # another process was first, with another millisecond in first_seq
        await js.stream_info(config.name or "")
    except APIError as error:
        if is_last_try or error.err_code != OUT_OF_STORAGE:
            raise
        return False
    return True


async def ensure_consumer(js: JetStreamContext, stream: str, config: ConsumerConfig) -> None:
    """Make a durable consumer; leave an existing one unchanged."""
    assert config.durable_name is not None
    try:
        await js.consumer_info(stream, config.durable_name)
    except NotFoundError:
        await js.add_consumer(stream, config)


async def has_consumer(js: JetStreamContext, stream: str, consumer: str) -> bool:
    """Whether a consumer exists. For workers with their own key, which may look but not make."""
    try:
        await js.consumer_info(stream, consumer)
    except NotFoundError:
        return False
    return True
