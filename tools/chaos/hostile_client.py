"""A client with the workers' token that sends forged, repeated and malformed messages; none of them may count.

It speaks as `liar`, never under another worker's name: with one token for all, nothing could detect that.
Knows subjects and the wire contract.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
from PIL import Image

from engine.bus import BrokerUnreachable, Bus
from engine.contract import Frame, JobCancelled, JobFailed, JobFinished, JobStarted, PictureReady, Result, encode
from tools.chaos.observer import ClaimRecord, Observer

NAME = "liar"
MAX_PAYLOAD = 8 * 1024 * 1024 - 4096  # the broker disconnects clients that send more
ODD_NAMES = (
    b"\xff\xfe",
    b"a\x0bb",
    b"\x0c7",
    b"x" * 3000,
    b"\xff" * 3000,
    b"*",
    b">",
)  # for the last token of a subject
ODD_BLOCKS = (b"NATS/1.0 \xff\xff\xff", b"NATS/1.0\r\n a: b\r\n\r\n", b"NATS/1.0", b"N", b"\xff" * 8 + b" \xff\xff\xff")


class HostileClient:
    """Sends lies. Each is about a job that another worker holds under `claim`."""

    def __init__(self, bus: Bus, observer: Observer) -> None:
        self._bus = bus
        self._observer = observer

    async def repeat_messages(self, rng: random.Random) -> str:
        """Repeats earlier results and dispatched work, out of order."""
        messages = list(self._observer.recorded_messages)
        sample = rng.sample(messages, min(len(messages), 40))
        for subject, payload in sample:
            with suppress(BrokerUnreachable):
                await self._publish(subject, payload)
        return f"{len(sample)} messages"

    async def send_lie(self, rng: random.Random) -> str:
        """Tells one kind of lie about one running job, and returns which."""
        running_jobs = self._observer.list_running()
        if not running_jobs:
            return "nobody to lie about"
        job, claim = rng.choice(running_jobs)
        senders = [
            self.send_old_epoch,
            self.send_foreign_results,
            self.send_giant_messages,
            self.send_bad_pictures,
            self.send_missing_blob,
            self.send_garbage,
            self.send_unknown_fields,
            self.send_odd_subjects,
            self.send_odd_headers,
        ]
        send: Callable[[str, ClaimRecord, random.Random], Awaitable[None]] = rng.choice(senders)
        with suppress(BrokerUnreachable):
            await send(job, claim, rng)
        return f"{send.__name__} about {job}"

    async def send_old_epoch(self, job: str, claim: ClaimRecord, rng: random.Random) -> None:
        """Ends and pictures under an old epoch."""
        epoch = rng.choice((0, 1, claim.epoch - 1))
        for result in (await self._forge_picture(job, epoch), *_make_ends(job, epoch)):
            await self._publish_result(result)

    async def send_foreign_results(self, job: str, claim: ClaimRecord, rng: random.Random) -> None:
        """The right epoch, from a worker without the claim."""
        epoch = claim.epoch
        results: list[Result] = [
            JobStarted(job=job, epoch=epoch, worker=NAME, step=1),
            await self._forge_picture(job, epoch),
        ]
        await self._publish_result(rng.choice([*results, *_make_ends(job, epoch)]))

    async def send_giant_messages(self, job: str, claim: ClaimRecord, rng: random.Random) -> None:
        """Messages as large as the broker allows, as a frame and as a result."""
        frame = Frame(
            job=job,
            image=0,
            epoch=claim.epoch,
            step=1,
            total_steps=1,
            picture=rng.randbytes(256 * 1024),
            seconds_left=1.0,
        )
        await self._bus.publish_frame(frame)
        await self._bus.client.publish(f"frames.{job}", bytes(MAX_PAYLOAD))
        await self._publish(f"results.{NAME}.{job}", bytes(MAX_PAYLOAD))

    async def send_bad_pictures(self, job: str, claim: ClaimRecord, rng: random.Random) -> None:
        """Bytes that are no picture, and a picture of another size."""
        noise = rng.randbytes(500)
        await self._publish_result(_make_picture(job, claim.epoch, await self._bus.put_blob(noise), len(noise)))
        small = _make_png((16, 16), 1)
        await self._publish_result(_make_picture(job, claim.epoch, await self._bus.put_blob(small), len(small)))

    async def send_missing_blob(self, job: str, claim: ClaimRecord, rng: random.Random) -> None:
        """A picture without a blob, and one with a wrong size."""
        await self._publish_result(_make_picture(job, claim.epoch, hashlib.sha256(rng.randbytes(8)).hexdigest(), 100))
        content = _make_png((64, 64), 2)
        await self._publish_result(_make_picture(job, claim.epoch, await self._bus.put_blob(content), len(content) + 1))

    async def send_garbage(self, job: str, claim: ClaimRecord, rng: random.Random) -> None:
        """Undecodable bytes on every subject that has a listener."""
        for subject in (f"results.{NAME}.{job}", f"work.default.{job}.999"):
            await self._publish(subject, rng.randbytes(200))
        own_key = f"$KV.workers.{NAME}.default"
        for subject in (f"frames.{job}", f"loading.{job}", f"steer.{job}", "frames.x", own_key, "embed"):
            await self._bus.client.publish(subject, rng.randbytes(200))

    async def send_unknown_fields(self, job: str, claim: ClaimRecord, rng: random.Random) -> None:
        """Valid results with an extra field, with an unknown version, and with an unknown type."""
        valid_result = msgspec.json.decode(msgspec.json.encode(_make_ends(job, claim.epoch)[0]))
        for odd_result in (
            {**valid_result, "more": 1},
            {**valid_result, "v": 99, "new": True},
            {**valid_result, "type": "Miracle"},
        ):
            await self._publish(f"results.{NAME}.{job}", msgspec.msgpack.encode(odd_result))

    async def send_odd_subjects(self, job: str, claim: ClaimRecord, rng: random.Random) -> None:
        """Subjects that the broker accepts: not text, with a gap, or of maximal length."""
        name = rng.choice(ODD_NAMES)
        words = b"abc"
        for subject in (b"results.%s." % NAME.encode() + name, b"frames." + name):
            await self._write(b"PUB %s %d\r\n%s\r\n" % (subject, len(words), words))

    async def send_odd_headers(self, job: str, claim: ClaimRecord, rng: random.Random) -> None:
        """Headers that are not text, that begin in their first line, or that end too soon."""
        block = rng.choice(ODD_BLOCKS)
        words = b"abc"
        for subject in (f"results.{NAME}.{job}", f"frames.{job}"):
            sizes = b"%d %d" % (len(block), len(block) + len(words))
            await self._write(b"HPUB %s %s\r\n%s%s\r\n" % (subject.encode(), sizes, block, words))

    async def _write(self, line: bytes) -> None:
        """Writes bytes that no client library would send."""
        if self._bus.is_connected and (transport := self._bus.client._transport) is not None:
            transport.write(line)
        await asyncio.sleep(0)

    async def _forge_picture(self, job: str, epoch: int) -> PictureReady:
        """A plausible picture of the job, with forged bytes."""
        content = _make_png((64, 64), epoch % 200)
        return _make_picture(job, epoch, await self._bus.put_blob(content), len(content))

    async def _publish_result(self, result: Result) -> None:
        await self._publish(f"results.{NAME}.{result.job}", encode(result))

    async def _publish(self, subject: str, payload: bytes) -> None:
        """Publishes without waiting for an answer."""
        with suppress(OSError, TimeoutError):
            await self._bus.client.publish(subject, payload)
        await asyncio.sleep(0)


def _make_ends(job: str, epoch: int) -> list[Result]:
    return [
        JobFinished(job=job, epoch=epoch, cost=1e6, seconds=1.0, ms_per_step=1.0),
        JobFailed(job=job, epoch=epoch, reason="A lie.", blame="member"),
        JobCancelled(job=job, epoch=epoch, steps=1, cost=1e6),
    ]


def _make_picture(job: str, epoch: int, sha: str, size: int) -> PictureReady:
    return PictureReady(job=job, image=0, epoch=epoch, kind="image", sha256=sha, bytes=size, width=64, height=64)


def _make_png(size: tuple[int, int], shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()
