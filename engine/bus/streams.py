"""The streams and buckets that the broker keeps, as configurations, and how they are made.

Knows what is kept, how long and how much of it; nothing of what the messages say. Declaring twice is harmless, so both
sides do it at the start and again after the broker's store was lost.

No stream takes a header `Nats-Rollup`: whoever may publish one message to a stream could purge all of it by that.
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
    """How long the broker keeps what, in seconds, and how much, in bytes: together less than its `FILE_BYTES`."""

    lease: float = 10.0  # a claim and a worker's presence live this long without renewal; also `ack_wait`
    max_age: float = 7 * DAY  # cancel tombstones, snapshots, dead letters
    leading: float = 4.0  # the lease of the one bot that is at work: another takes over when it ran out
    blob_age: float = DAY  # pictures on their way: the bot copies them within seconds
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
    """A key-value bucket, as the client library reads it."""
    config = StreamConfig(
        name=subjects.kv_stream(name), subjects=[subjects.kv_subject(name, ">")], max_msgs_per_subject=1,
        max_age=ttl, duplicate_window=min(ttl, 120.0), allow_direct=True, deny_delete=True, discard=DiscardPolicy.NEW,
        storage=StorageType.FILE,
    )  # fmt: skip
    return config.evolve(**extra)


def streams(kept: Kept, now: float) -> list[StreamConfig]:
    """All of them. `now` is in seconds since 1970.

    The claims' revisions are the epochs, and SQL rejects an older epoch; so a new claims stream must start above every
    epoch that a lost one ever gave out: it starts at the time in milliseconds, which no one renews fast enough to pass.
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
        # A full bucket drops its oldest snapshots: that costs steps, while refusing new ones would cost them too.
        _bucket(subjects.SNAPSHOTS, kept.max_age, max_bytes=kept.snapshot_bytes, discard=DiscardPolicy.OLD),
        # Each part of a blob has its own subject. A full one drops its oldest, which were copied long ago.
        StreamConfig(
            name=subjects.BLOBS_STREAM, subjects=[f"$O.{subjects.BLOBS}.{part}.>" for part in "CM"],
            max_age=kept.blob_age, max_bytes=kept.blob_bytes, discard=DiscardPolicy.OLD, storage=StorageType.FILE,
            max_msgs_per_subject=1, allow_direct=True,
        ),
    ]  # fmt: skip


def settle_consumer() -> ConsumerConfig:
    """One durable consumer of results. A bot that is killed gets what it had fetched again after this wait."""
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
    """Makes what is not there yet, and mends what an earlier version made. Raises the client library's errors."""
    wanted = streams(kept, time.time())
    await asyncio.gather(*(_ensure(js, config) for config in wanted))


async def _ensure(js: JetStreamContext, config: StreamConfig) -> None:
    """Where several make the same stream at once, each reserves its bytes, and for that there may be no room: again."""
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
    """Before, a worker's key could purge buckets by a header, and all parts of a blob lay on one subject."""
    most = found.max_msgs_per_subject
    if most != wanted.max_msgs_per_subject and await _one_each(js, wanted.name or "", subjects.blob_parts("*")):
        most = wanted.max_msgs_per_subject
    better = replace(found, allow_rollup_hdrs=False, max_msgs_per_subject=most)
    if better != found:
        await js.update_stream(better)


async def _one_each(js: JetStreamContext, stream: str, pattern: str) -> bool:
    """Whether none of these subjects holds several messages, of which a bound would leave the last."""
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
    """Makes a durable consumer; an existing one stays as it is."""
    assert config.durable_name is not None
    try:
        await js.consumer_info(stream, config.durable_name)
    except NotFoundError:
        await js.add_consumer(stream, config)


async def is_there(js: JetStreamContext, stream: str, consumer: str) -> bool:
    """For whoever may look and not make: a worker with a key of its own."""
    try:
        await js.consumer_info(stream, consumer)
    except NotFoundError:
        return False
    return True
