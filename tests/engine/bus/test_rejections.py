"""A refusal is logged once with its reason; a flood of refusals fills neither the log nor the memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from engine.bus import Bus, subjects
from engine.bus.deliveries import (
    MAX_KEPT,
    MAX_LINES,
    REASON_CHARS,
    RECENT_SECONDS,
    REPEAT_SECONDS,
    SUBJECT_CHARS,
    WINDOW_SECONDS,
    RejectionLog,
)
from engine.bus.embedded_broker import Broker
from engine.contract import MAX_ROWS, Presence, encode
from shared.clock import Clock, wait_until

GOOD = Presence(worker="easel", pools=("default",), models=(), device="paper", rows=4, free=4, software_build="test")


Join = Callable[[], Awaitable[Bus]]


@pytest_asyncio.fixture
async def connect_bus(tmp_path: Path) -> AsyncIterator[Join]:
    """Opens declared connections to a real broker."""
    async with AsyncExitStack() as parts:
        broker = await parts.enter_async_context(Broker(tmp_path / "nats"))

        async def connect() -> Bus:
            bus = await Bus.connect(broker.url, broker.token)
            parts.push_async_callback(bus.close)
            await bus.declare()
            return bus

        yield connect


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_same_refusal_is_logged_once_and_again_much_later(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    rejection_log = RejectionLog(clock)
    for _ in range(50):
        rejection_log.record("worker easel announces rows 50000", "Expected `int` <= 1024")
        clock.now += 2.0
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "worker easel announces rows 50000, which is refused: Expected `int` <= 1024" in caplog.text
    clock.now = REPEAT_SECONDS
    rejection_log.record("worker easel announces rows 50000", "Expected `int` <= 1024")
    assert len(caplog.records) == 2
    assert "(51 times by now)" in caplog.records[-1].message


def test_a_flood_is_summed_up_in_the_log_and_bounded_in_memory(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    rejection_log = RejectionLog(clock)
    for number in range(5000):
        rejection_log.record(f"worker w{number}", "no")
    assert len(caplog.records) == MAX_LINES
    assert len(rejection_log.list_recent()) == MAX_KEPT
    clock.now = WINDOW_SECONDS
    rejection_log.record("worker easel", "no")
    assert f"{5000 - MAX_LINES} others were refused meanwhile" in caplog.records[-1].message
    assert rejection_log.list_recent()[0].subject == "worker easel"
    clock.now += RECENT_SECONDS + 1
    assert rejection_log.list_recent() == []


@given(st.lists(st.tuples(st.text(max_size=400), st.text(max_size=900)), max_size=80))
def test_foreign_text_is_shortened_to_one_line(words: list[tuple[str, str]]) -> None:
    rejection_log = RejectionLog(Clock())
    for sender, reason in words:
        rejection_log.record(sender, reason)
    for one in rejection_log.list_recent():
        assert str(one).isprintable()
        assert len(one.subject) <= SUBJECT_CHARS
        assert len(one.reason) <= REASON_CHARS
    assert len(rejection_log.list_recent()) <= MAX_KEPT


@pytest.mark.asyncio
async def test_an_invalid_presence_is_refused_and_the_next_valid_one_counts(
    connect_bus: Join, caplog: pytest.LogCaptureFixture
) -> None:
    bot = await connect_bus()
    worker = await connect_bus()
    await bot.watch_workers()
    for _ in range(5):
        await worker.announce(msgspec.structs.replace(GOOD, rows=50_000))
    await wait_until(lambda: bot.rejections.list_recent() and bot.rejections.list_recent()[0].count == 5)
    assert bot.workers == {}
    [one] = bot.rejections.list_recent()
    assert one.subject == "worker easel announces rows 50000"
    assert str(MAX_ROWS) in one.reason
    assert caplog.text.count("worker easel announces rows 50000, which is refused") == 1
    await worker.announce(GOOD)
    await wait_until(lambda: "easel" in bot.workers)


@pytest.mark.asyncio
async def test_every_kind_of_refusal_has_its_reason(connect_bus: Join) -> None:
    bot: Bus = await connect_bus()
    await bot.watch_workers()
    key = subjects.kv_subject(subjects.WORKERS, subjects.presence_key("easel", "default"))
    newer_message = msgspec.msgpack.encode({**msgspec.msgpack.decode(encode(GOOD)), "v": 99})
    odd = {
        "no msgpack": b"\xc1",
        "newer": newer_message,
        "another's": encode(msgspec.structs.replace(GOOD, worker="other")),
    }
    for payload in odd.values():
        await bot.client.publish(key, payload)
    await bot.client.publish(key, encode(GOOD), headers={"Nats-Stream": "KV_workers"})
    await wait_until(lambda: len(bot.rejections.list_recent()) == 4)
    sentences = [str(one) for one in reversed(bot.rejections.list_recent())]
    assert sentences[0].startswith("worker easel announces itself")
    assert "worker easel announces v 99" in sentences[1] or "version 99" in sentences[1]
    assert "the worker other in the pools default" in sentences[2]
    assert "a reply of the broker" in sentences[3]
    assert bot.workers == {}


@pytest.mark.asyncio
async def test_a_flood_of_bad_frames_is_fully_counted_but_partly_logged(
    connect_bus: Join, caplog: pytest.LogCaptureFixture
) -> None:
    bot = await connect_bus()

    async def listen() -> None:
        async for _ in bot.watch_frames():
            pass

    listen_task = asyncio.create_task(listen())
    await asyncio.sleep(0.2)
    for number in range(200):
        await bot.client.publish(subjects.make_frame_subject(f"{number:026}"), b"no frame")
    await wait_until(lambda: bot.dead_letters.count["frames"] == 200)
    listen_task.cancel()
    await asyncio.gather(listen_task, return_exceptions=True)
    assert len([record for record in caplog.records if record.name == "engine.bus.deliveries"]) == MAX_LINES
    assert len(bot.rejections.list_recent()) == MAX_KEPT
