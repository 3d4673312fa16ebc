"""The bus against the real server: no message is lost or doubled, and an older epoch is refused."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import pytest_asyncio

from engine.bus import (
    BlobMissing,
    BrokerUnreachable,
    Bus,
    BusLimits,
    ConnectionEnded,
    NoWorkerAnswers,
    StaleEpoch,
    subjects,
)
from engine.bus.blobs import BlobEntry
from engine.bus.deliveries import MAX_DEAD_BYTES
from engine.bus.embedded_broker import FILE_BYTES, MAX_PAYLOAD, Broker
from engine.bus.subjects import build_stream_configs
from engine.contract import (
    VERSION,
    BillingKey,
    Concept,
    Frame,
    Job,
    JobModelLoading,
    JobStarted,
    PictureReady,
    Presence,
    Recipe,
    Snapshot,
    encode,
)
from shared.clock import wait_until

LEASE = 1.0
JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
OTHER = "01ARZ3NDEKTSV4RRFFQ69G5FAW"


def make_job(job: str = JOB, **changes: Any) -> Job:
    task = Recipe(
        concepts=(Concept("a cat"),),
        model="embedded",
        sampler="ddim",
        steps=4,
        seed=1,
        guidance=4.0,
        width=64,
        height=64,
        dtype="float32",
    )
    defaults = {
        "id": job,
        "task": task,
        "billing_key": BillingKey("standard", "guild", "ann"),
        "cost": 1.0,
        "deadline": 2e9,
    }
    return Job(**{**defaults, **changes})


def make_snapshot(epoch: int, image: int = 0, k: int = 1, size: int = 16) -> Snapshot:
    return Snapshot(job=JOB, image=image, epoch=epoch, next_step=k, shape=(1, 4), x=b"x" * size, history=b"")


@pytest_asyncio.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with Broker(tmp_path / "nats") as broker:
        yield broker


@pytest_asyncio.fixture
async def connect_bus(broker: Broker) -> AsyncIterator[Callable[[], Any]]:
    """Makes as many connections as a test wants, each with its streams declared."""
    buses: list[Bus] = []

    async def connect(lease: float = LEASE) -> Bus:
        bus = await Bus.connect(broker.url, broker.token, limits=BusLimits(lease=lease))
        buses.append(bus)
        await bus.declare()
        return bus

    yield connect
    for bus in buses:
        await bus.close()


async def take_values(source: AsyncIterator[Any], count: int, seconds: float = 10.0) -> list[Any]:
    """The first values of an iterator; closes it."""
    values: list[Any] = []
    async with asyncio.timeout(seconds):
        while len(values) < count:
            values.append(await anext(source))
    await source.aclose()  # pyright: ignore[reportAttributeAccessIssue]
    return values


@pytest.mark.asyncio
async def test_a_repeated_dispatch_is_one_message(connect_bus: Any) -> None:
    bus: Bus = await connect_bus()
    assert await bus.dispatch(make_job()) is True
    assert await bus.dispatch(make_job()) is False
    assert await bus.dispatch(make_job(attempt=2)) is True
    first = await bus.pull_job(["default"])
    second = await bus.pull_job(["default"])
    assert first is not None
    assert second is not None
    assert (first.value.attempt, second.value.attempt) == (1, 2)
    assert await bus.pull_job(["default"], timeout=0.2) is None


@pytest.mark.asyncio
async def test_a_job_reaches_exactly_one_waiting_worker_at_once(connect_bus: Any) -> None:
    bot = await connect_bus()
    one = await connect_bus()
    second = await connect_bus()
    pull_tasks = [asyncio.create_task(bus.pull_job(["default"], timeout=3.0)) for bus in (one, second)]
    await asyncio.sleep(0.3)
    await bot.dispatch(make_job())
    await bot.dispatch(make_job(OTHER))
    received_ids = [task.value.id for task in await asyncio.gather(*pull_tasks) if task]
    assert sorted(received_ids) == [JOB, OTHER]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_is_redelivered_after_the_lease_unless_heartbeats_hold_it(connect_bus: Any) -> None:
    bot = await connect_bus()
    one = await connect_bus()
    second = await connect_bus()
    await bot.dispatch(make_job())
    delivery = await one.pull_job(["default"])
    for _ in range(4):
        await asyncio.sleep(LEASE * 0.4)
        await delivery.in_progress()
        assert await second.pull_job(["default"], timeout=0.05) is None
    redelivery = await second.pull_job(["default"], timeout=LEASE * 3)
    assert (redelivery.value, redelivery.delivery_count) == (make_job(), 2)
    await redelivery.ack()
    assert await one.pull_job(["default"], timeout=LEASE * 1.5) is None


@pytest.mark.asyncio
async def test_a_job_handed_back_is_redelivered_at_once(connect_bus: Any) -> None:
    bus: Bus = await connect_bus()
    await bus.dispatch(make_job())
    first = await bus.pull_job(["default"])
    assert first is not None
    await first.nak()
    redelivery = await bus.pull_job(["default"], timeout=LEASE / 2)
    assert redelivery is not None
    assert redelivery.delivery_count == 2


@pytest.mark.asyncio
async def test_a_worker_that_stops_pulling_holds_no_job_back(connect_bus: Any) -> None:
    bot = await connect_bus()
    one = await connect_bus()
    second = await connect_bus()
    await one.pull_job(["default"], timeout=0.01)  # leaves a request behind that has not expired yet
    pull = asyncio.create_task(one.pull_job(["default"], timeout=5.0))
    await asyncio.sleep(0.1)
    pull.cancel()
    await one.stop_pulling()
    await bot.dispatch(make_job())
    assert (await second.pull_job(["default"], timeout=LEASE / 2)).value == make_job()


@pytest.mark.asyncio
async def test_a_job_in_flight_to_a_stopping_worker_is_handed_back(connect_bus: Any) -> None:
    bot = await connect_bus()
    one = await connect_bus()
    second = await connect_bus()
    assert await one.pull_job(["default"], timeout=0.1) is None
    for round in range(20):
        pull = asyncio.create_task(one.pull_job(["default"], timeout=5.0))
        await asyncio.sleep(0.02)
        pull.cancel()
        await asyncio.gather(bot.dispatch(make_job(attempt=round + 1)), one.stop_pulling())
        delivered = await second.pull_job(["default"], timeout=LEASE / 2)
        assert delivered is not None
        await delivered.ack()


@pytest.mark.asyncio
async def test_pools_are_separate_even_with_dots_in_their_names(connect_bus: Any) -> None:
    bus: Bus = await connect_bus()
    await bus.dispatch(make_job(pool="gpu.large"))
    assert await bus.pull_job(["gpu"], timeout=0.2) is None
    delivered = await bus.pull_job(["gpu", "gpu.large"], timeout=1.0)
    assert delivered is not None
    assert delivered.value.pool == "gpu.large"


@pytest.mark.asyncio
async def test_settling_removes_a_jobs_messages(connect_bus: Any) -> None:
    bus: Bus = await connect_bus()
    for attempt in (1, 2):
        await bus.dispatch(make_job(attempt=attempt))
    await bus.dispatch(make_job(OTHER))
    await bus.remove_dispatched(make_job(attempt=1))
    delivered = await bus.pull_job(["default"])
    assert delivered is not None
    assert delivered.value.attempt == 2
    await bus.remove_dispatched(make_job(), every_attempt=True)
    await bus.remove_dispatched(make_job(), every_attempt=True)
    left = await bus.pull_job(["default"], timeout=LEASE * 2)
    assert left is not None
    assert left.value.id == OTHER
    assert await bus.pull_job(["default"], timeout=0.1) is None


@pytest.mark.asyncio
async def test_a_claim_has_one_holder_and_one_epoch_through_renewals(connect_bus: Any) -> None:
    bus: Bus = await connect_bus()
    claim = await bus.claim_job(JOB, "one.local")
    assert claim is not None
    epoch = claim.epoch
    for _ in range(5):
        await asyncio.sleep(LEASE * 0.4)
        assert await bus.renew_claim(claim)
        assert await bus.claim_job(JOB, "two") is None
    holder = await bus.get_holder(JOB)
    assert holder is not None
    assert (holder.worker, holder.epoch, claim.epoch) == ("one.local", epoch, epoch)
    await bus.release_claim(claim)
    assert await bus.get_holder(JOB) is None
    next_claim = await bus.claim_job(JOB, "two")
    assert next_claim is not None
    assert next_claim.epoch > epoch
    assert await bus.renew_claim(claim) is False
    await bus.release_claim(claim)  # a late release takes nothing from the next holder
    assert await bus.renew_claim(next_claim)


@pytest.mark.asyncio
async def test_a_pull_without_wait_takes_only_jobs_that_no_other_worker_waits_for(connect_bus: Any) -> None:
    # a lease that a stalled machine does not outlast: an expired one delivers the job again, to either worker
    bot, idle_worker, full_worker = [await connect_bus(lease=30.0) for _ in range(3)]
    started_at = time.monotonic()
    assert await full_worker.pull_job(["default"], 5.0, wait=False) is None
    assert time.monotonic() - started_at < 4.0
    assert await idle_worker.pull_job(["default"], 0.1) is None
    for _ in range(10):
        pull_task = asyncio.create_task(idle_worker.pull_job(["default"], 5.0))
        empty_pulls = [await full_worker.pull_job(["default"], 5.0, wait=False) for _ in range(3)]
        await bot.dispatch(make_job())
        empty_pulls.append(await full_worker.pull_job(["default"], 5.0, wait=False))
        delivered = await pull_task
        assert delivered is not None
        await delivered.ack()
        assert empty_pulls == [None] * 4
    await bot.dispatch(make_job())
    async with asyncio.timeout(5.0):  # on a busy machine the broker's consumer learns of a stored job a moment later
        while (delivered := await full_worker.pull_job(["default"], 5.0, wait=False)) is None:
            pass
    assert delivered.value == make_job()


@pytest.mark.asyncio
async def test_one_of_many_concurrent_claims_wins(connect_bus: Any) -> None:
    buses = [await connect_bus() for _ in range(4)]
    claims = await asyncio.gather(*(bus.claim_job(JOB, f"w{number}") for number, bus in enumerate(buses)))
    assert sum(claim is not None for claim in claims) == 1


@pytest.mark.asyncio
async def test_an_unrenewed_claim_expires(connect_bus: Any) -> None:
    bus: Bus = await connect_bus()
    claim = await bus.claim_job(JOB, "one")
    assert claim is not None
    await asyncio.sleep(LEASE * 1.7)
    assert await bus.renew_claim(claim) is False
    assert await bus.claim_job(JOB, "two") is not None


@pytest.mark.asyncio
async def test_a_renewal_whose_answer_is_lost_keeps_the_claim(connect_bus: Any) -> None:
    bus: Bus = await connect_bus()
    claim = await bus.claim_job(JOB, "one")
    assert claim is not None
    before = claim.revision
    assert await bus.renew_claim(claim)
    claim.revision = before  # as if no answer had come
    assert await bus.renew_claim(claim)
    assert claim.revision > before + 1


@pytest.mark.asyncio
async def test_a_claim_is_revoked_even_if_its_worker_renews_it_meanwhile(connect_bus: Any, monkeypatch: Any) -> None:
    worker = await connect_bus()
    bot = await connect_bus()
    claim = await worker.claim_job(JOB, "one")
    bucket = bot._claims._bucket
    delete = bucket.delete
    renewals = []

    async def delete_late(key: str, last: int | None = None) -> bool:
        if not renewals:
            renewals.append(await worker.renew_claim(claim))
        return await delete(key, last=last)

    monkeypatch.setattr(bucket, "delete", delete_late)
    assert await bot.revoke_claim(JOB, claim.epoch)
    assert renewals == [True]
    assert await bot.get_holder(JOB) is None
    assert not await worker.renew_claim(claim)


@pytest.mark.asyncio
async def test_a_late_release_does_not_remove_the_next_holders_claim(connect_bus: Any, monkeypatch: Any) -> None:
    worker = await connect_bus()
    bot = await connect_bus()
    claim = await worker.claim_job(JOB, "one")
    bucket = worker._claims._bucket
    delete = bucket.delete
    next_claims = []

    async def delete_late(key: str, last: int | None = None) -> bool:
        if not next_claims:
            assert await bot.revoke_claim(JOB, claim.epoch)
            next_claims.append(await bot.claim_job(JOB, "two"))
        return await delete(key, last=last)

    monkeypatch.setattr(bucket, "delete", delete_late)
    await worker.release_claim(claim)
    assert (await bot.get_holder(JOB)).worker == "two"
    assert await bot.renew_claim(next_claims[0])


@pytest.mark.asyncio
async def test_epochs_grow_even_when_the_store_is_lost(connect_bus: Any, broker: Broker) -> None:
    bus: Bus = await connect_bus()
    claim = await bus.claim_job(JOB, "one")
    assert claim is not None
    await asyncio.to_thread(lose_store, broker)
    await wait_until(lambda: broker.restarts == 1)
    await wait_until(lambda: bus.is_connected)
    await asyncio.sleep(0.5)
    assert await bus.renew_claim(claim) is False
    next_claim = await bus.claim_job(JOB, "two")
    assert next_claim is not None
    assert next_claim.epoch > claim.epoch


def lose_store(broker: Broker) -> None:
    """Kills the server; its store is gone when it restarts.

    It is stopped first: a thread of a killed server may still write a file while the next server already reads.
    """
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGSTOP)
    (broker.folder / "store").rename(broker.folder / "lost")
    os.kill(broker.pid, signal.SIGKILL)


@pytest.mark.asyncio
async def test_bot_and_worker_continue_when_the_store_is_lost(connect_bus: Any, broker: Broker) -> None:
    bot = await connect_bus()
    worker = await connect_bus()
    results = bot.consume_results()
    first = asyncio.create_task(anext(results))
    assert await worker.pull_job(["default"], timeout=0.1) is None
    publish_event = asyncio.Event()

    async def publish_late() -> None:
        await bot.dispatch(make_job())
        publish_event.set()

    bot.add_reconnect_callback(publish_late)
    await asyncio.to_thread(lose_store, broker)
    await asyncio.wait_for(publish_event.wait(), 15)
    async with asyncio.timeout(10):
        while (delivered := await patient_pull(worker)) is None:
            pass
    assert delivered.value == make_job()
    await worker.publish_result("one", JobStarted(job=JOB, epoch=1, worker="one"))
    assert (await asyncio.wait_for(first, 15)).value.job == JOB
    await results.aclose()


async def patient_pull(bus: Bus) -> Any:
    try:
        return await bus.pull_job(["default"], timeout=0.5)
    except BrokerUnreachable:
        await asyncio.sleep(0.1)
        return None


@pytest.mark.asyncio
async def test_two_stores_never_start_at_the_same_epoch() -> None:
    def first(now: float) -> int:
        return next(
            config.first_seq or 0 for config in build_stream_configs(BusLimits(), now) if config.name == "KV_claims"
        )

    assert first(1000.002) > first(1000.0)


@pytest.mark.asyncio
async def test_results_wait_in_order_until_the_bot_acknowledges_them(connect_bus: Any) -> None:
    worker = await connect_bus()
    bot = await connect_bus()
    sent_results = [JobStarted(job=JOB, epoch=1, worker="one")] + [
        PictureReady(job=JOB, image=number, epoch=1, kind="image", sha256="a" * 64, bytes=9, width=64, height=64)
        for number in range(4)
    ]
    for result in sent_results:
        await worker.publish_result("one.local", result)
    received_results = await take_values(bot.consume_results(), 5)
    assert [delivered.value for delivered in received_results] == sent_results
    for delivered in received_results[:4]:
        await delivered.ack()
    await received_results[4].nak()
    redelivered = await take_values(bot.consume_results(), 1)
    assert (redelivered[0].value, redelivered[0].delivery_count) == (sent_results[4], 2)
    await redelivered[0].ack()
    assert (await bot.js.stream_info("results")).state.messages == 0


@pytest.mark.slow
@pytest.mark.asyncio
async def test_an_unreadable_message_becomes_a_dead_letter_and_blocks_nothing(connect_bus: Any) -> None:
    bus: Bus = await connect_bus()
    await bus.js.publish(f"results.one.{JOB}", b"\xff garbage")
    await bus.js.publish(f"work.default.{JOB}.1", encode(make_job().task))
    await bus.client.publish(f"frames.{JOB}", b"no frame")
    await bus.dispatch(make_job(OTHER))
    await bus.publish_result("one", JobStarted(job=JOB, epoch=1, worker="one"))
    result = (await take_values(bus.consume_results(), 1))[0]
    delivered = await bus.pull_job(["default"])
    assert delivered is not None
    assert (result.value.job, delivered.value.id) == (JOB, OTHER)
    assert bus.dead_letters.count == {"results": 1, "work": 1}
    letters = [await bus.js.get_msg("dead", seq=seq) for seq in (1, 2)]
    assert [message.subject for message in letters] == [f"dead.results.one.{JOB}", f"dead.work.default.{JOB}.1"]
    assert letters[0].data == b"\xff garbage"
    assert (letters[1].headers or {})["Reason"]
    await delivered.dead_letter("three tries\nwere enough")
    await asyncio.sleep(LEASE * 1.3)
    assert await bus.pull_job(["default"], timeout=0.2) is None


@pytest.mark.asyncio
async def test_a_job_of_a_newer_version_stays_in_the_queue_and_its_reader_rests(
    connect_bus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.bus.deliveries.OTHER_VERSION_PAUSE", 0.5)
    bot = await connect_bus()
    worker = await connect_bus()
    other_worker = await connect_bus()
    fields = msgspec.msgpack.decode(encode(make_job()))
    await bot.js.publish(f"work.default.{JOB}.1", msgspec.msgpack.encode({**fields, "v": VERSION + 1}))
    assert await worker.pull_job(["default"], 3.0) is None
    await bot.dispatch(make_job(OTHER))
    assert await worker.pull_job(["default"], 0.1) is None, "it leaves jobs to others"
    delivered = await other_worker.pull_job(["default"], 3.0)
    assert delivered is not None
    assert delivered.value.id == OTHER
    await delivered.ack()
    assert (await bot.js.stream_info("work")).state.messages == 1
    assert worker.dead_letters.count == {}


@pytest.mark.asyncio
async def test_a_job_of_an_older_version_is_a_dead_letter_so_that_the_bot_sends_it_anew(connect_bus: Any) -> None:
    bot = await connect_bus()
    worker = await connect_bus()
    fields = msgspec.msgpack.decode(encode(make_job()))
    await bot.dispatch(make_job(OTHER))
    await bot.js.publish(f"work.default.{JOB}.1", msgspec.msgpack.encode({**fields, "v": VERSION - 1}))
    delivered = await worker.pull_job(["default"], 3.0)
    assert delivered is not None
    await delivered.ack()
    assert await worker.pull_job(["default"], 1.0) is None
    assert worker.dead_letters.count == {"work": 1}
    assert (await bot.js.stream_info("work")).state.messages == 0


@pytest.mark.asyncio
async def test_a_slow_reader_of_previews_gets_the_newest_frames(connect_bus: Any) -> None:
    worker = await connect_bus()
    bot = await connect_bus()
    frames = bot.watch_frames()
    first = asyncio.create_task(anext(frames))
    await asyncio.sleep(0.1)
    await worker.client.publish(f"frames.{JOB}", b"no frame")
    for step in range(200):
        for image in (0, 1):
            await worker.publish_frame(
                Frame(job=JOB, image=image, epoch=1, step=step, total_steps=200, picture=b"j" * 1000, seconds_left=1.0)
            )
    await worker.client.flush()
    await first
    await asyncio.sleep(0.3)
    latest = await take_values(frames, 2)
    assert {(frame.image, frame.step) for frame in latest} == {(0, 199), (1, 199)}
    assert bot.dead_letters.count == {"frames": 1}


@pytest.mark.asyncio
async def test_a_slow_reader_of_loading_messages_gets_the_newest_of_each_job(connect_bus: Any) -> None:
    worker = await connect_bus()
    bot = await connect_bus()
    loadings = bot.watch_loadings()
    frames = bot.watch_frames()
    first = asyncio.create_task(anext(loadings))
    frame = asyncio.create_task(anext(frames))
    await asyncio.sleep(0.1)
    await worker.client.publish(f"loading.{JOB}", b"no loading")
    await worker.client.publish(f"loading.{JOB}", encode(make_frame()))
    await worker.publish_loading(JobModelLoading(job=JOB, epoch=1, model="large", loaded_share=0.0))
    await worker.publish_frame(make_frame())
    await worker.client.flush()
    assert ((await first).loaded_share, (await frame).step) == (0.0, 3)
    for percent in range(101):
        for job in (JOB, OTHER):
            await worker.publish_loading(JobModelLoading(job=job, epoch=1, model="large", loaded_share=percent / 100))
    await worker.client.flush()
    await asyncio.sleep(0.3)
    assert {(one.job, one.loaded_share) for one in await take_values(loadings, 2)} == {(JOB, 1.0), (OTHER, 1.0)}
    assert bot.dead_letters.count == {"loading": 2}


def make_frame() -> Frame:
    return Frame(job=JOB, image=0, epoch=1, step=3, total_steps=200, picture=b"j", seconds_left=1.0)


@pytest.mark.asyncio
async def test_a_snapshot_of_an_older_epoch_is_refused(connect_bus: Any) -> None:
    one = await connect_bus()
    second = await connect_bus()
    await one.put_snapshot(make_snapshot(5, k=1))
    await one.put_snapshot(make_snapshot(5, image=1, k=1))
    await one.put_snapshot(make_snapshot(5, k=2))
    assert [(s.image, s.next_step) for s in await second.get_snapshots(JOB)] == [(0, 2), (1, 1)]
    await second.put_snapshot(make_snapshot(9, k=3))
    with pytest.raises(StaleEpoch):
        await one.put_snapshot(make_snapshot(5, k=99))
    assert [(s.image, s.next_step) for s in await one.get_snapshots(JOB)] == [(0, 3), (1, 1)]
    await second.drop_snapshots(JOB)
    assert await one.get_snapshots(JOB) == []
    assert await second.get_snapshots(OTHER) == []


@pytest.mark.asyncio
async def test_a_snapshot_larger_than_a_message_is_stored_and_leaves_no_blobs_behind(connect_bus: Any) -> None:
    one = await connect_bus()
    second = await connect_bus()
    limit_bytes = 7 * 1024 * 1024
    await one.put_snapshot(make_snapshot(5, size=limit_bytes))
    await one.put_snapshot(make_snapshot(5, k=2, size=limit_bytes))
    assert [(s.next_step, len(s.x)) for s in await second.get_snapshots(JOB)] == [(2, limit_bytes)]
    await one.drop_snapshots(JOB)
    assert (await one.js.stream_info("OBJ_blobs")).state.bytes < limit_bytes


@pytest.mark.asyncio
async def test_an_unreadable_snapshot_is_skipped_and_may_be_overwritten(connect_bus: Any) -> None:
    bus: Bus = await connect_bus()
    await bus.js.publish(f"$KV.snapshots.{JOB}.0", b"garbage")
    assert await bus.get_snapshots(JOB) == []
    await bus.put_snapshot(make_snapshot(1))
    assert await bus.get_snapshots(JOB) == [make_snapshot(1)]


@pytest.mark.asyncio
async def test_blobs_are_named_by_their_hash(connect_bus: Any) -> None:
    one = await connect_bus()
    second = await connect_bus()
    for content in (b"small", os.urandom(3 * 1024 * 1024 + 7)):
        sha = await one.put_blob(content)
        assert sha == hashlib.sha256(content).hexdigest()
        assert await one.put_blob(content) == sha
        assert await second.get_blob(sha, len(content)) == content
        with pytest.raises(BlobMissing, match="larger"):
            await second.get_blob(sha, len(content) - 1)
    with pytest.raises(BlobMissing, match="no blob"):
        await second.get_blob("f" * 64, 10)


@pytest.mark.asyncio
async def test_a_damaged_blob_is_refused(connect_bus: Any) -> None:
    bus: Bus = await connect_bus()
    sha = "a" * 64
    content = b"not what the name says"
    await bus.js.publish("$O.blobs.C.abc.0", content)
    await bus.js.publish(subjects.blob_entry(sha), msgspec.json.encode(BlobEntry(sha, "blobs", "abc", len(content))))
    with pytest.raises(BlobMissing, match="damaged"):
        await bus.get_blob(sha, 100)


@pytest.mark.asyncio
async def test_a_cancellation_is_received_at_once_and_can_be_read_later(connect_bus: Any) -> None:
    bot = await connect_bus()
    worker = await connect_bus()
    cancelled_jobs = worker.watch_cancelled()
    first = asyncio.create_task(anext(cancelled_jobs))
    await asyncio.sleep(0.1)
    assert await worker.is_cancelled(JOB) is False
    await bot.cancel(JOB)
    assert await asyncio.wait_for(first, 1.0) == JOB
    assert await worker.is_cancelled(JOB) is True
    assert await worker.is_cancelled(OTHER) is False
    await cancelled_jobs.aclose()


@pytest.mark.asyncio
async def test_a_worker_hears_requests_for_previews(connect_bus: Any) -> None:
    bot = await connect_bus()
    worker = await connect_bus()
    preview_requests = worker.watch_preview_requests()
    first = asyncio.create_task(anext(preview_requests))
    await asyncio.sleep(0.1)
    await bot.request_previews(JOB)
    assert await asyncio.wait_for(first, 1.0) == JOB
    await preview_requests.aclose()


def make_presence(worker: str, free_rows: int = 8) -> Presence:
    return Presence(
        worker=worker, pools=("default",), models=(), device="cpu", rows=8, free=free_rows, software_build="test"
    )


@pytest.mark.asyncio
async def test_workers_appear_change_depart_and_expire(connect_bus: Any) -> None:
    bot = await connect_bus()
    one = await connect_bus()
    changes: list[int] = []
    await one.announce(make_presence("one.local"))
    await bot.watch_workers(lambda: changes.append(1))
    assert bot.workers == {"one.local": make_presence("one.local")}
    await one.announce(make_presence("one.local", free_rows=2))
    await one.announce(make_presence("two"))
    await wait_until(lambda: len(bot.workers) == 2)
    assert bot.workers["one.local"].free == 2
    count = len(changes)
    await one.announce(make_presence("two"))
    await one.remove_presence("one.local")
    await wait_until(lambda: list(bot.workers) == ["two"])
    assert len(changes) == count + 1
    await wait_until(lambda: bot.workers == {}, LEASE * 3)


@pytest.mark.asyncio
async def test_a_worker_of_several_pools_is_listed_once_with_its_announced_pools(connect_bus: Any) -> None:
    bot = await connect_bus()
    one = await connect_bus()
    changes: list[int] = []
    presence_of_two_pools = msgspec.structs.replace(make_presence("one.local"), pools=("gpu.large", "default"))
    await one.announce(presence_of_two_pools)
    await bot.watch_workers(lambda: changes.append(1))
    assert bot.workers == {"one.local": presence_of_two_pools}
    count = len(changes)
    await one.announce(presence_of_two_pools)
    await one.announce(msgspec.structs.replace(presence_of_two_pools, free=1))
    await wait_until(lambda: bot.workers["one.local"].free == 1)
    await bot.client.flush()
    assert len(changes) == count + 1
    for _ in range(4):
        await asyncio.sleep(LEASE * 0.4)
        await one.js.publish("$KV.workers.one=local.default", encode(presence_of_two_pools))
    await wait_until(lambda: "one.local" in bot.workers)
    assert bot.workers == {"one.local": msgspec.structs.replace(presence_of_two_pools, pools=("default",))}
    await one.announce(presence_of_two_pools)
    await wait_until(lambda: bot.workers == {"one.local": presence_of_two_pools})
    await one.remove_presence("one.local")
    await wait_until(lambda: bot.workers == {}, LEASE / 2)


@pytest.mark.asyncio
@pytest.mark.parametrize("key", ["one", "one.gpu", "one.gpu.large", "one.default.x", "two.default", "one=.default"])
async def test_a_presence_counts_only_in_the_pool_of_its_subject(connect_bus: Any, key: str) -> None:
    bot = await connect_bus()
    one = await connect_bus()
    await one.js.publish(f"$KV.workers.{key}", encode(make_presence("one")))
    await bot.watch_workers()
    await one.js.publish(f"$KV.workers.{key}", encode(make_presence("one")))
    await one.announce(make_presence("last"))
    await wait_until(lambda: "last" in bot.workers)
    assert list(bot.workers) == ["last"]


@pytest.mark.asyncio
async def test_any_capable_worker_embeds_texts(connect_bus: Any) -> None:
    bot = await connect_bus()
    worker = await connect_bus()
    with pytest.raises(NoWorkerAnswers, match="No worker"):
        await bot.embed(["a cat"])

    async def embed(texts: Any) -> list[list[float]]:
        if "boom" in texts:
            raise RuntimeError("secret detail")
        return [[1.0, 0.0] for _ in texts]

    await worker.serve_embed(embed)
    await worker.client.flush()
    assert await bot.embed(["a", "b"]) == ((1.0, 0.0), (1.0, 0.0))
    with pytest.raises(NoWorkerAnswers, match="failed") as error:
        await bot.embed(["boom"])
    assert "secret" not in str(error.value)
    answer = await bot.client.request("embed", b"garbage", timeout=2)
    assert b"malformed" in answer.data
    assert await bot.embed(["still here"]) == ((1.0, 0.0),)


@pytest.mark.asyncio
async def test_an_unreachable_broker_raises_in_bounded_time_and_recovers(connect_bus: Any, broker: Broker) -> None:
    bus: Bus = await connect_bus()
    await bus.dispatch(make_job())
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGSTOP)
    while psutil.Process(broker.pid).status() != psutil.STATUS_STOPPED:  # all of its threads, on every core
        await asyncio.sleep(0.01)
    try:
        bus.js._timeout = 0.5
        for attempt in (bus.dispatch(make_job(OTHER)), bus.claim_job(JOB, "one"), bus.is_cancelled(JOB)):
            with pytest.raises(BrokerUnreachable):
                await asyncio.wait_for(attempt, 8)
    finally:
        os.kill(broker.pid, signal.SIGCONT)
        bus.js._timeout = 5
    assert (await bus.pull_job(["default"], timeout=5)) is not None


@pytest.mark.asyncio
async def test_a_dead_letter_of_maximum_size_disconnects_nobody(connect_bus: Any) -> None:
    bus = await connect_bus()
    other = await connect_bus()
    await other.client.publish(f"results.one.{JOB}", b"\xc1" * MAX_PAYLOAD)
    await other.publish_result("one", JobStarted(job=JOB, epoch=1, worker="one"))
    result = (await take_values(bus.consume_results(), 1))[0]
    assert result.value.job == JOB
    letter = await bus.js.get_msg("dead", seq=1)
    assert (len(letter.data or b""), (letter.headers or {})["Bytes"]) == (MAX_DEAD_BYTES, str(MAX_PAYLOAD))
    assert bus.is_connected


@pytest.mark.asyncio
async def test_a_connection_that_the_server_ends_for_good_raises_ended(connect_bus: Any) -> None:
    bus = await connect_bus()
    other = await connect_bus()
    close_task = asyncio.create_task(bus.wait_closed())
    other_close_task = asyncio.create_task(other.wait_closed())
    # The header makes the message too large; only the server notices.
    await bus.client.publish("anything", b"x" * MAX_PAYLOAD, headers={"Reason": "none"})
    with pytest.raises(ConnectionEnded, match=r"(?i)payload"):
        await asyncio.wait_for(close_task, 10)
    assert not other_close_task.done()
    await other.close()
    await asyncio.wait_for(other_close_task, 5)  # our own close is no error


def test_stream_sizes_are_bounded_and_fit_the_brokers_storage() -> None:
    bounds = {config.name: config.max_bytes or 0 for config in build_stream_configs(BusLimits(), 0.0)}
    assert {"work", "results", "dead", "KV_snapshots", "OBJ_blobs"} <= {
        name for name, expected_limit in bounds.items() if expected_limit > 0
    }
    assert sum(bounds.values()) <= FILE_BYTES


@pytest.mark.asyncio
async def test_only_the_copy_of_a_blob_that_was_read_is_dropped(connect_bus: Any) -> None:
    bus = await connect_bus()
    sha = await bus.put_blob(b"a picture")
    assert await bus.get_blob(sha, 100) == b"a picture"
    await bus.blobs.drop(sha)
    await bus.put_blob(b"a picture")  # of another job
    await bus.drop_read_blob(sha)
    assert await bus.get_blob(sha, 100) == b"a picture"
    await bus.drop_read_blob(sha)
    with pytest.raises(BlobMissing):
        await bus.get_blob(sha, 100)
    await bus.put_blob(b"a picture")
    await bus.drop_read_blob(sha)  # nobody has read it
    with pytest.raises(BlobMissing):
        await bus.get_blob(sha, 100)
    await bus.put_blob(b"a picture")
    await bus.get_blob(sha, 100)
    await bus.declare()  # after a reconnection the stream may be new, with other numbers
    await bus.drop_read_blob(sha)
    with pytest.raises(BlobMissing):
        await bus.get_blob(sha, 100)


@pytest.mark.asyncio
async def test_full_streams_refuse_jobs_and_results_and_drop_the_oldest_blob(broker: Broker) -> None:
    small = BusLimits(lease=LEASE, work_bytes=4000, result_bytes=4000, blob_bytes=100_000)
    bus = await Bus.connect(broker.url, broker.token, limits=small)
    try:
        await bus.declare()
        with pytest.raises(BrokerUnreachable, match="maximum bytes"):
            await await_in_turn(bus.dispatch(make_job(attempt=number + 1)) for number in range(40))
        with pytest.raises(BrokerUnreachable, match="maximum bytes"):
            await await_in_turn(publish_picture(bus, number) for number in range(40))
        assert [d.value.image for d in await take_values(bus.consume_results(), 2)] == [0, 1]
        shas = [await bus.put_blob(bytes([number]) * 30_000) for number in range(5)]
        assert len(await bus.get_blob(shas[-1], 30_000)) == 30_000
        with pytest.raises(BlobMissing):
            await bus.get_blob(shas[0], 30_000)
    finally:
        await bus.close()


async def publish_picture(bus: Bus, number: int) -> None:
    picture = PictureReady(
        job=JOB, image=number % 4, epoch=number, kind="image", sha256="a" * 64, bytes=9, width=64, height=64
    )
    await bus.publish_result("one", picture)


async def await_in_turn(awaitables: Iterable[Awaitable[object]]) -> None:
    for awaitable in awaitables:
        await awaitable


@pytest.mark.asyncio
async def test_an_unreadable_claim_has_no_holder_and_one_worker_claims_the_job_anew(connect_bus: Any) -> None:
    first = await connect_bus()
    second = await connect_bus()
    bot = await connect_bus()
    old_claim = await first.claim_job(JOB, "one")
    await bot.js.publish(f"$KV.claims.{JOB}", b"\xc1 garbage")
    assert await bot.get_holder(JOB) is None
    claims = await asyncio.gather(
        *(bus.claim_job(JOB, name) for bus, name in ((first, "a"), (second, "b"), (bot, "c")))
    )
    granted_claims = [claim for claim in claims if claim is not None]
    assert len(granted_claims) == 1
    assert granted_claims[0].epoch > old_claim.epoch
    assert not await first.renew_claim(old_claim)
    assert (await bot.get_holder(JOB)).worker == granted_claims[0].worker
    await bot.js.publish(f"$KV.claims.{JOB}", b"")
    assert not await first.renew_claim(old_claim)  # still not: another worker has held it since
    assert not await second.renew_claim(granted_claims[0])
    assert await bot.get_holder(JOB) is None
