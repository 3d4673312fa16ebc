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

from chaos.observer import Claimed, Observer
from engine.bus import BrokerUnreachable, Bus
from engine.contract import (
    Frame,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobStarted,
    PictureReady,
    Result,
    encode,
)

NAME = "liar"
LIMIT = 8 * 1024 * 1024 - 4096  # the broker disconnects clients that send more
NAMES = (b"\xff\xfe", b"a\x0bb", b"\x0c7", b"x" * 3000, b"\xff" * 3000, b"*", b">")  # for the last token of a subject
BLOCKS = (b"NATS/1.0 \xff\xff\xff", b"NATS/1.0\r\n a: b\r\n\r\n", b"NATS/1.0", b"N", b"\xff" * 8 + b" \xff\xff\xff")


class Liar:
    """Sends lies. Each is about a job that another worker holds under `claimed`."""

    def __init__(self, bus: Bus, observer: Observer) -> None:
        self._bus, self._observer = bus, observer

    async def repeat(self, chance: random.Random) -> str:
        """Repeats earlier results and dispatched work, out of order."""
        messages = list(self._observer.heard)
        sample = chance.sample(messages, min(len(messages), 40))
        for subject, payload in sample:
            with suppress(BrokerUnreachable):
                await self._publish(subject, payload)
        return f"{len(sample)} messages"

    async def lie(self, chance: random.Random) -> str:
        """Tells one kind of lie about one running job, and returns which."""
        running = self._observer.held()
        if not running:
            return "nobody to lie about"
        job, claimed = chance.choice(running)
        lies = [
            self.old_epoch, self.stranger, self.giants, self.bad_picture, self.no_blob, self.garbage, self.unknown,
            self.subject, self.header,
        ]  # fmt: skip
        tell_lie: Callable[[str, Claimed, random.Random], Awaitable[None]] = chance.choice(lies)
        with suppress(BrokerUnreachable):
            await tell_lie(job, claimed, chance)
        return f"{tell_lie.__name__} about {job}"

    async def old_epoch(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """Ends and pictures under an old epoch."""
        epoch = chance.choice((0, 1, claimed.epoch - 1))
        for result in (await self._forge_picture(job, epoch), *_make_ends(job, epoch)):
            await self._publish_result(result)

    async def stranger(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """The right epoch, from a worker without the claim."""
        epoch = claimed.epoch
        lies: list[Result] = [
            JobStarted(job=job, epoch=epoch, worker=NAME, step=1),
            await self._forge_picture(job, epoch),
        ]
        await self._publish_result(chance.choice([*lies, *_make_ends(job, epoch)]))

    async def giants(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """Messages as large as the broker allows, as a frame and as a result."""
        frame = Frame(
            job=job,
            image=0,
            epoch=claimed.epoch,
            step=1,
            total_steps=1,
            picture=chance.randbytes(256 * 1024),
            seconds_left=1.0,
        )
        await self._bus.publish_frame(frame)
        await self._bus.client.publish(f"frames.{job}", bytes(LIMIT))
        await self._publish(f"results.{NAME}.{job}", bytes(LIMIT))

    async def bad_picture(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """Bytes that are no picture, and a picture of another size."""
        noise = chance.randbytes(500)
        await self._publish_result(_make_picture(job, claimed.epoch, await self._bus.put_blob(noise), len(noise)))
        small = _make_png((16, 16), 1)
        await self._publish_result(_make_picture(job, claimed.epoch, await self._bus.put_blob(small), len(small)))

    async def no_blob(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """A picture without a blob, and one with a wrong size."""
        await self._publish_result(
            _make_picture(job, claimed.epoch, hashlib.sha256(chance.randbytes(8)).hexdigest(), 100)
        )
        there = _make_png((64, 64), 2)
        await self._publish_result(_make_picture(job, claimed.epoch, await self._bus.put_blob(there), len(there) + 1))

    async def garbage(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """Undecodable bytes on every subject that has a listener."""
        for subject in (f"results.{NAME}.{job}", f"work.default.{job}.999"):
            await self._publish(subject, chance.randbytes(200))
        me = f"$KV.workers.{NAME}.default"
        for subject in (f"frames.{job}", f"loading.{job}", f"steer.{job}", "frames.x", me, "embed"):
            await self._bus.client.publish(subject, chance.randbytes(200))

    async def unknown(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """Valid results with an extra field, with an unknown version, and with an unknown type."""
        valid = msgspec.json.decode(msgspec.json.encode(_make_ends(job, claimed.epoch)[0]))
        for odd in ({**valid, "more": 1}, {**valid, "v": 99, "new": True}, {**valid, "type": "Miracle"}):
            await self._publish(f"results.{NAME}.{job}", msgspec.msgpack.encode(odd))

    async def subject(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """Subjects that the broker accepts: not text, with a gap, or of maximal length."""
        name, words = chance.choice(NAMES), b"abc"
        for subject in (b"results.%s." % NAME.encode() + name, b"frames." + name):
            await self._write(b"PUB %s %d\r\n%s\r\n" % (subject, len(words), words))

    async def header(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """Headers that are not text, that begin in their first line, or that end too soon."""
        block, words = chance.choice(BLOCKS), b"abc"
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
        fake = _make_png((64, 64), epoch % 200)
        return _make_picture(job, epoch, await self._bus.put_blob(fake), len(fake))

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
    out = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(out, "PNG")
    return out.getvalue()
