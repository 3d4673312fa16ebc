"""A worker with a key that tries every subject it may not use, and sends nonsense where it may.

What a worker with a key can do by design (docs/workers.md) is no finding: it never claims another worker's job here.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from contextlib import suppress

import msgspec

from attack.room import HOSTILE_WORKER
from chaos.hostile_client import MAX_PAYLOAD, ODD_BLOCKS, ODD_NAMES
from engine.bus import BrokerUnreachable, Bus
from engine.contract import Frame, JobFailed, JobFinished, JobStarted, Presence, encode
from tests.engine.bus.test_worker_keys import FORBIDDEN, FORBIDDEN_SUBSCRIPTIONS

UNKNOWN_JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAZ"
STREAM_ACTIONS = (
    "CREATE", "UPDATE", "DELETE", "PURGE", "INFO", "MSG.GET", "MSG.DELETE", "SNAPSHOT", "RESTORE", "LEADER.STEPDOWN",
)  # fmt: skip
VIOLATION = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"')
ANSWER_SECONDS = 15.0


async def try_every_subject(url: str, key: str, bot: Bus) -> tuple[int, list[str]]:
    """Returns how many subjects it tried, and the ones that the broker did not refuse."""
    streams = [info.config.name for info in await bot.js.streams_info()]
    subjects = {*FORBIDDEN, *(f"$JS.API.STREAM.{action}.{name}" for name in streams for action in STREAM_ACTIONS)}
    expected = {("publish", one.lower()) for one in subjects} | {
        ("subscription", one.lower()) for one in FORBIDDEN_SUBSCRIPTIONS
    }
    refused = set[tuple[str, str]]()
    worker = await Bus.connect(url, name=HOSTILE_WORKER, key=key)

    async def note(error: Exception) -> None:
        refused.update((match[1], match[2]) for match in VIOLATION.finditer(str(error)))

    worker.client._error_cb = note
    try:
        for subject in subjects:
            await worker.client.publish(subject, b"{}", f"_INBOX.{HOSTILE_WORKER}.1")
        for subject in FORBIDDEN_SUBSCRIPTIONS:
            await worker.client.subscribe(subject)
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                while not refused >= expected:
                    await asyncio.sleep(0.05)
    finally:
        await worker.close()
    return len(expected), [f"{kind} to {subject}" for kind, subject in sorted(expected - refused)]


async def send_nonsense(url: str, key: str, jobs: list[str], count: int, rng: random.Random) -> int:
    """Sends that many malformed messages; returns how many the broker took."""
    worker, sent = await Bus.connect(url, name=HOSTILE_WORKER, key=key), 0
    try:
        for number in range(count):
            job = rng.choice([*jobs, UNKNOWN_JOB])
            try:
                await _send_one(worker, number, job, rng)
                sent += 1
            except (BrokerUnreachable, OSError, TimeoutError):
                await asyncio.sleep(0.1)
            if number % 50 == 49:
                await worker.client.flush(10)
    finally:
        await worker.close()
    return sent


async def _send_one(worker: Bus, number: int, job: str, rng: random.Random) -> None:
    subjects = [
        f"results.{HOSTILE_WORKER}.{job}", f"frames.{job}", f"loading.{job}", f"$KV.workers.{HOSTILE_WORKER}.default",
        f"progress.{HOSTILE_WORKER}.default", f"$KV.claims.{UNKNOWN_JOB}", f"$KV.snapshots.{UNKNOWN_JOB}.0",
    ]  # fmt: skip
    subject = rng.choice(subjects)
    if number % 10 == 0:
        await _write_odd_line(worker, job, rng)
    elif number % 500 == 1:
        await worker.client.publish(subject, bytes(MAX_PAYLOAD))
    else:
        await worker.client.publish(subject, rng.choice(PAYLOADS)(job, rng))


async def _write_odd_line(worker: Bus, job: str, rng: random.Random) -> None:
    """Writes bytes that no client library would send."""
    name, block = rng.choice(ODD_NAMES), rng.choice(ODD_BLOCKS)
    lines = [
        b"PUB results.%s.%s 3\r\nabc\r\n" % (HOSTILE_WORKER.encode(), name),
        b"PUB frames.%s 3\r\nabc\r\n" % name,
        b"HPUB frames.%s %d %d\r\n%sabc\r\n" % (job.encode(), len(block), len(block) + 3, block),
    ]
    if worker.is_connected and (transport := worker.client._transport) is not None:
        transport.write(rng.choice(lines))
    await asyncio.sleep(0)


def _make_valid(job: str, rng: random.Random) -> bytes:
    """A message that would be right from the worker that holds the job."""
    presence = Presence(
        worker=HOSTILE_WORKER, pools=("default",), models=(), device="none", rows=1, free=1, software_build="x"
    )
    frame = Frame(job=job, image=0, epoch=1, step=1, total_steps=4, picture=b"\xff\xd8", seconds_left=1.0)
    messages = [
        JobStarted(job=job, epoch=1, worker=HOSTILE_WORKER), frame, presence,
        JobFinished(job=job, epoch=1, cost=1e300, seconds=-1.0, ms_per_step=0.0),
        JobFailed(job=job, epoch=1, reason="\x1b[2J\nforged line", blame="member"),
    ]  # fmt: skip
    return encode(rng.choice(messages))


def _cut(job: str, rng: random.Random) -> bytes:
    return (valid := _make_valid(job, rng))[: rng.randrange(len(valid))]


def _alter(job: str, rng: random.Random) -> bytes:
    content = bytearray(_make_valid(job, rng))
    for _ in range(rng.randint(1, 6)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def _nest(job: str, rng: random.Random) -> bytes:
    return b"\x91" * rng.choice((100, 100_000)) + b"\x01"


def _change_type(job: str, rng: random.Random) -> bytes:
    fields = msgspec.msgpack.decode(_make_valid(job, rng))
    if isinstance(fields, dict) and fields:
        fields[rng.choice(list(fields))] = rng.choice((None, [], {}, -1, 2**63, float("nan"), "x" * 9000, b"\xff"))
    return msgspec.msgpack.encode(fields)


def _random_bytes(job: str, rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(0, 400))


PAYLOADS: tuple[Callable[[str, random.Random], bytes], ...] = (_cut, _alter, _nest, _change_type, _random_bytes)
