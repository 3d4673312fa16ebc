"""Configurations of the broker's streams and buckets, and the functions that create them.

Creating them twice is harmless: both sides do it at the start, and again after the broker lost its store.

No stream allows the header `Nats-Rollup`: a client that may publish one message could purge the whole stream by it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, BadRequestError, NotFoundError

from engine.bus import subjects

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
        name=subjects.kv_stream(name),
        subjects=[subjects.kv_subject(name, ">")],
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
            name=subjects.WORK,
            subjects=[f"{subjects.WORK}.>"],
            retention=RetentionPolicy.WORK_QUEUE,
            max_msgs_per_subject=1,
            discard=DiscardPolicy.NEW,
            discard_new_per_subject=True,
            storage=StorageType.FILE,
            max_bytes=limits.work_bytes,
        ),
        StreamConfig(
            name=subjects.RESULTS,
            subjects=[f"{subjects.RESULTS}.>"],
            retention=RetentionPolicy.WORK_QUEUE,
            max_bytes=limits.result_bytes,
            discard=DiscardPolicy.NEW,
            storage=StorageType.FILE,  # none is ever dropped
        ),
        StreamConfig(
            name=subjects.DEAD_LETTERS,
            subjects=[f"{subjects.DEAD_LETTERS}.>"],
            max_age=limits.max_age,
            max_bytes=limits.dead_bytes,
            discard=DiscardPolicy.OLD,
            storage=StorageType.FILE,
        ),
        _bucket_config(subjects.CLAIMS, limits.lease, first_seq=int(now * 1000)),
        _bucket_config(subjects.LEADERS, limits.leader_lease),
        _bucket_config(subjects.WORKERS, limits.lease, storage=StorageType.MEMORY),
        _bucket_config(subjects.CANCELLED, limits.max_age),
        # A full bucket drops its oldest snapshots. That costs steps, but so would refusing new ones.
        _bucket_config(subjects.SNAPSHOTS, limits.max_age, max_bytes=limits.snapshot_bytes, discard=DiscardPolicy.OLD),
        # Each chunk of a blob has its own subject. A full bucket drops its oldest, which were copied long ago.
        StreamConfig(
            name=subjects.BLOBS_STREAM,
            subjects=[f"$O.{subjects.BLOBS}.{part}.>" for part in "CM"],
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
        durable_name=subjects.RESULT_CONSUMER,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=15.0,
        max_deliver=-1,
        max_ack_pending=10_000,
    )


def pool_consumer_config(pool: str, lease: float) -> ConsumerConfig:
    return ConsumerConfig(
        durable_name=subjects.pool_consumer(pool),
        filter_subject=subjects.pool_filter(pool),
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
