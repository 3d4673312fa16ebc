"""Configurations of the broker's streams and buckets, and how they are made.

Declaring twice is harmless: both sides do it at the start, and again after the broker's store was lost.

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
NO_ROOM = 10047  # "insufficient storage resources available"
PAUSES = (0.0, 0.1, 0.3, 1.0)  # seconds


@dataclass(frozen=True)
class Kept:
    """Retention in seconds and size limits in bytes; the sizes sum to less than the broker's `FILE_BYTES`."""

    lease: float = 10.0  # a claim and a worker's presence live this long without renewal; also `ack_wait`
    max_age: float = 7 * DAY  # cancel tombstones, snapshots, dead letters
    leading: float = 4.0  # the leader lease: a standby takes over when it expires
    blob_age: float = DAY  # pictures in transit: the bot copies them within seconds
    work_bytes: int = 256 * MIB
    result_bytes: int = 1024 * MIB
    snapshot_bytes: int = 512 * MIB
    blob_bytes: int = 4096 * MIB
    dead_bytes: int = 64 * MIB

    @property
    def beat(self) -> float:
        """Seconds between renewals: two may be lost and the lease still holds."""
        return self.lease * 0.3


def _bucket(name: str, ttl: float, **extra: object) -> StreamConfig:
    """Return a key-value bucket's stream, in the client library's layout."""
    config = StreamConfig(
        name=subjects.kv_stream(name), subjects=[subjects.kv_subject(name, ">")], max_msgs_per_subject=1,
        max_age=ttl, duplicate_window=min(ttl, 120.0), allow_direct=True, deny_delete=True, discard=DiscardPolicy.NEW,
        storage=StorageType.FILE,
    )  # fmt: skip
    return config.evolve(**extra)


def streams(kept: Kept, now: float) -> list[StreamConfig]:
    """Return all stream configurations. `now`: seconds since 1970.

    Claim revisions are the epochs, and SQL rejects an older epoch. So a new claims stream must start above every epoch
    of a lost one. It starts at the time in milliseconds, which renewals are too slow to overtake.
    """
    return [
        StreamConfig(
            name=subjects.WORK, subjects=[f"{subjects.WORK}.>"], retention=RetentionPolicy.WORK_QUEUE,
            max_msgs_per_subject=1, discard=DiscardPolicy.NEW, discard_new_per_subject=True, storage=StorageType.FILE,
            max_bytes=kept.work_bytes,
        ),
        StreamConfig(
            name=subjects.RESULTS, subjects=[f"{subjects.RESULTS}.>"], retention=RetentionPolicy.WORK_QUEUE,
            max_bytes=kept.result_bytes, discard=DiscardPolicy.NEW, storage=StorageType.FILE,  # none is ever dropped
        ),
        StreamConfig(
            name=subjects.DEAD, subjects=[f"{subjects.DEAD}.>"], max_age=kept.max_age, max_bytes=kept.dead_bytes,
            discard=DiscardPolicy.OLD, storage=StorageType.FILE,
        ),
        _bucket(subjects.CLAIMS, kept.lease, first_seq=int(now * 1000)),
        _bucket(subjects.LEADERS, kept.leading),
        _bucket(subjects.WORKERS, kept.lease, storage=StorageType.MEMORY),
        _bucket(subjects.CANCELLED, kept.max_age),
        # A full bucket drops its oldest snapshots. That costs steps, but so would refusing new ones.
        _bucket(subjects.SNAPSHOTS, kept.max_age, max_bytes=kept.snapshot_bytes, discard=DiscardPolicy.OLD),
        # Each chunk of a blob has its own subject. A full bucket drops its oldest, which were copied long ago.
        StreamConfig(
            name=subjects.BLOBS_STREAM, subjects=[f"$O.{subjects.BLOBS}.{part}.>" for part in "CM"],
            max_age=kept.blob_age, max_bytes=kept.blob_bytes, discard=DiscardPolicy.OLD, storage=StorageType.FILE,
            max_msgs_per_subject=1, allow_direct=True,
        ),
    ]  # fmt: skip


def settle_consumer() -> ConsumerConfig:
    """Return the durable consumer of results. A killed bot gets its unacknowledged results again after `ack_wait`."""
    return ConsumerConfig(
        durable_name=subjects.SETTLE,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=15.0,
        max_deliver=-1,
        max_ack_pending=10_000,
    )


def pool_consumer(pool: str, lease: float) -> ConsumerConfig:
    return ConsumerConfig(
        durable_name=subjects.pool_consumer(pool), filter_subject=subjects.pool_filter(pool),
        ack_policy=AckPolicy.EXPLICIT, ack_wait=lease, max_deliver=-1, max_ack_pending=100_000,
    )  # fmt: skip


async def declare(js: JetStreamContext, kept: Kept) -> None:
    """Make missing streams, and fix those of earlier versions. Raises the client library's errors."""
    wanted = streams(kept, time.time())
    await asyncio.gather(*(_ensure(js, config) for config in wanted))


async def _ensure(js: JetStreamContext, config: StreamConfig) -> None:
    """Make a stream, with retries: processes that make it at once each reserve its bytes, which may not fit."""
    assert config.name is not None
    for pause in PAUSES:
        await asyncio.sleep(pause)
        try:
            found = await js.stream_info(config.name)
        except NotFoundError:
            if await _made(js, config, last=pause == PAUSES[-1]):
                return
        else:
            await _mend(js, found.config, config)
            return


async def _mend(js: JetStreamContext, found: StreamConfig, wanted: StreamConfig) -> None:
    """Fix older streams, where a worker key could purge buckets by a header and a blob's chunks shared one subject."""
    most = found.max_msgs_per_subject
    if most != wanted.max_msgs_per_subject and await _one_each(js, wanted.name or "", subjects.blob_parts("*")):
        most = wanted.max_msgs_per_subject
    better = replace(found, allow_rollup_hdrs=False, max_msgs_per_subject=most)
    if better != found:
        await js.update_stream(better)


async def _one_each(js: JetStreamContext, stream: str, pattern: str) -> bool:
    """Whether each of these subjects holds at most one message. Otherwise a limit of one would delete messages."""
    told = await js.stream_info(stream, subjects_filter=pattern)
    return all(count <= 1 for count in (told.state.subjects or {}).values())


async def _made(js: JetStreamContext, config: StreamConfig, *, last: bool) -> bool:
    try:
        await js.add_stream(config)
    except BadRequestError:  # another process was first, with another millisecond in first_seq
        await js.stream_info(config.name or "")
    except APIError as error:
        if last or error.err_code != NO_ROOM:
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


async def is_there(js: JetStreamContext, stream: str, consumer: str) -> bool:
    """Whether a consumer exists. For workers with their own key, which may look but not make."""
    try:
        await js.consumer_info(stream, consumer)
    except NotFoundError:
        return False
    return True
