"""A worker with a key that tries every subject it may not use, and sends nonsense where it may.

What a worker with a key can do by design (docs/workers.md) is no finding: it never claims another worker's job here.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import nats.errors

from engine.bus import Bus
from engine.bus.connection import AUTH_FAILURE, CLIENT_OPTIONS, Credentials, HardenedClient
from engine.contract import Frame, JobFailed, JobFinished, JobStarted, Presence, encode
from tools.attack.foreign_subjects import FORBIDDEN, FORBIDDEN_SUBSCRIPTIONS
from tools.attack.room import HOSTILE_WORKER
from tools.chaos.hostile_client import MAX_PAYLOAD, ODD_BLOCKS, ODD_NAMES

UNKNOWN_JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAZ"
STREAM_ACTIONS = (
    "CREATE",
    "UPDATE",
    "DELETE",
    "PURGE",
    "INFO",
    "MSG.GET",
    "MSG.DELETE",
    "SNAPSHOT",
    "RESTORE",
    "LEADER.STEPDOWN",
)
VIOLATION = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"')
CONNECT_SECONDS = 15.0
CLOSE_SECONDS = 5.0
ANSWER_SECONDS = 15.0
ODD_VALUES: tuple[object, ...] = (None, [], {}, -1, 2**63, float("nan"), "x" * 9000, b"\xff")


class RawClient(HardenedClient):
    """Notes what the broker refuses, and writes bytes that no client library would send."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = set[tuple[str, str]]()  # publish or subscription, and the subject

    async def note_error(self, error: Exception) -> None:
        self.refused.update((match[1], match[2]) for match in VIOLATION.finditer(str(error)))
        if AUTH_FAILURE in str(error).lower():  # the client would retry for ever
            raise error

    def write_raw(self, line: bytes) -> None:
        if self.is_connected and self._transport is not None:
            self._transport.write(line)


@asynccontextmanager
async def _connect(url: str, key: str) -> AsyncGenerator[RawClient]:
    client = RawClient()
    options = await asyncio.to_thread(Credentials(HOSTILE_WORKER, key=key).to_client_options, url)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await client.connect(
                servers=[url], name=HOSTILE_WORKER, error_cb=client.note_error, **CLIENT_OPTIONS, **options
            )
        yield client
    finally:
        with suppress(nats.errors.Error, OSError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await client.close()


async def try_every_subject(url: str, key: str, bot: Bus) -> tuple[int, list[str]]:
    """Returns how many subjects it tried, and the ones that the broker did not refuse."""
    streams = [info.config.name for info in await bot.js.streams_info()]
    subjects = {*FORBIDDEN, *(f"$JS.API.STREAM.{action}.{name}" for name in streams for action in STREAM_ACTIONS)}
    expected = {("publish", one.lower()) for one in subjects} | {
        ("subscription", one.lower()) for one in FORBIDDEN_SUBSCRIPTIONS
    }
    async with _connect(url, key) as worker:
        for subject in subjects:
            await worker.publish(subject, b"{}", f"_INBOX.{HOSTILE_WORKER}.1")
        for subject in FORBIDDEN_SUBSCRIPTIONS:
            await worker.subscribe(subject)
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                while not worker.refused >= expected:
                    await asyncio.sleep(0.05)
    return len(expected), [f"{kind} to {subject}" for kind, subject in sorted(expected - worker.refused)]


async def send_nonsense(url: str, key: str, jobs: list[str], count: int, rng: random.Random) -> int:
    """Sends that many malformed messages; returns how many the broker took."""
    sent = 0
    async with _connect(url, key) as worker:
        for number in range(count):
            job = rng.choice([*jobs, UNKNOWN_JOB])
            try:
                await _send_one(worker, number, job, rng)
                sent += 1
            except OSError:  # also when no answer came in time
                await asyncio.sleep(0.1)
            if number % 50 == 49:
                await worker.flush(10)
    return sent


async def _send_one(worker: RawClient, number: int, job: str, rng: random.Random) -> None:
    subjects = [
        f"results.{HOSTILE_WORKER}.{job}",
        f"frames.{job}",
        f"loading.{job}",
        f"$KV.workers.{HOSTILE_WORKER}.default",
        f"progress.{HOSTILE_WORKER}.default",
        f"$KV.claims.{UNKNOWN_JOB}",
        f"$KV.snapshots.{UNKNOWN_JOB}.0",
    ]
    subject = rng.choice(subjects)
    if number % 10 == 0:
        await _write_odd_line(worker, job, rng)
    elif number % 500 == 1:
        await worker.publish(subject, bytes(MAX_PAYLOAD))
    else:
        await worker.publish(subject, rng.choice(PAYLOADS)(job, rng))


async def _write_odd_line(worker: RawClient, job: str, rng: random.Random) -> None:
    """Writes bytes that no client library would send."""
    name = rng.choice(ODD_NAMES)
    block = rng.choice(ODD_BLOCKS)
    lines = [
        b"PUB results.%s.%s 3\r\nabc\r\n" % (HOSTILE_WORKER.encode(), name),
        b"PUB frames.%s 3\r\nabc\r\n" % name,
        b"HPUB frames.%s %d %d\r\n%sabc\r\n" % (job.encode(), len(block), len(block) + 3, block),
    ]
    worker.write_raw(rng.choice(lines))
    await asyncio.sleep(0)


def _make_valid(job: str, rng: random.Random) -> bytes:
    """A message that would be right from the worker that holds the job."""
    presence = Presence(
        worker=HOSTILE_WORKER, pools=("default",), models=(), device="none", rows=1, free=1, software_build="x"
    )
    frame = Frame(job=job, image=0, epoch=1, step=1, total_steps=4, picture=b"\xff\xd8", seconds_left=1.0)
    messages = [
        JobStarted(job=job, epoch=1, worker=HOSTILE_WORKER),
        frame,
        presence,
        JobFinished(job=job, epoch=1, cost=1e300, seconds=-1.0, ms_per_step=0.0),
        JobFailed(job=job, epoch=1, reason="\x1b[2J\nforged line", blame="member"),
    ]
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
    fields = msgspec.msgpack.decode(_make_valid(job, rng), type=dict[str, object])
    fields[rng.choice(list(fields))] = rng.choice(ODD_VALUES)
    return msgspec.msgpack.encode(fields)


def _random_bytes(job: str, rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(0, 400))


PAYLOADS: tuple[Callable[[str, random.Random], bytes], ...] = (_cut, _alter, _nest, _change_type, _random_bytes)
